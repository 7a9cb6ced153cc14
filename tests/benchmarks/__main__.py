"""`make bench`: what tinytf costs and how fast it learns, as ratios inside one run on one machine.

Each section alternates the two sides that it compares and takes medians, because the machine may be shared. A
section's figures are printed as a table and kept in results/<processor>-<threads>threads.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import decoding, learning, memory, optimizer, serving, starting, throughput
from tinytf.cli.main import quiet_libraries
from tinytf.utils.machine import cpu_name

SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "throughput": throughput.run,
    "optimizer": optimizer.run,
    "memory": memory.run,
    "decoding": decoding.run,
    "serving": serving.run,
    "starting": starting.run,
    "learning": learning.run,
    "base": learning.run_base,
}
RESULTS = Path(__file__).parent / "results"


def arguments() -> argparse.Namespace:
    flags = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    flags.add_argument("sections", nargs="*", default=list(SECTIONS), help=f"of {', '.join(SECTIONS)}; all if none")
    flags.add_argument(
        "--corpus", default="shakespeare", help="text of the sections learning and base (default: %(default)s)"
    )
    flags.add_argument("--rounds", type=int, default=5, help="pairs that alternate (default: %(default)s)")
    found = flags.parse_args()
    if unknown := set(found.sections) - set(SECTIONS):
        flags.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return found


def save(section: str, figures: dict[str, Any]) -> None:
    threads = torch.get_num_threads()
    path = RESULTS / f"{re.sub('[^a-z0-9]+', '-', cpu_name().lower())}-{threads}threads.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    machine = {"cpu": cpu_name(), "threads": threads, "torch": str(torch.__version__)}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps({**known, section: {"machine": machine, **figures}}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    args = arguments()
    quiet_libraries()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    print(f"{cpu_name()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}", flush=True)
    for section in args.sections:
        print(f"\n{section}", flush=True)
        save(section, SECTIONS[section](args))


main()
