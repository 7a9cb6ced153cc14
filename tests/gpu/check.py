"""What tinytf keeps and reaches on one GPU: `python -m tests.gpu.check`, eight minutes at most, no network.

Each check runs in a process of its own, so that none finds what another left on the GPU, and one that crashes is one
line. Those of correctness run side by side, those of speed one after the other. Prints a table and writes a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.gpu import correctness, speed
from tests.gpu.place import REPOSITORY, Place

CHECKS = {**correctness.CHECKS, **speed.SPEEDS}
RESULT = "result of the check: "


def alone(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run one check in a process of its own."""
    place = folder / re.sub("[^a-z0-9]+", "-", name)
    place.mkdir()
    began = time.perf_counter()
    command = [sys.executable, "-m", "tests.gpu.check", name, f"--in={place}", f"--corpus={text_of(args.corpus)}"]
    command += [f"--device={args.device}", *(["--small"] if args.small else [])]
    # lightning and torch would otherwise start the GPU's driver while they are imported: a fork would lack it.
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "TINYTF_CACHE": str(folder / "cache")}
    with (folder / f"{place.name}.log").open("w+") as log:
        try:
            code = subprocess.run(
                command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                timeout=args.patience,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = None
        log.seek(0)
        said = log.read().splitlines()
    results = [json.loads(line.removeprefix(RESULT)) for line in said if line.startswith(RESULT)]
    found = {"seconds": time.perf_counter() - began, "ok": code == 0 and len(results) == 1}
    found |= results[0] if found["ok"] else {"exit": code, "said": said[-60:]}
    print(f"{'ok' if found['ok'] else 'FAILED':<8}{name:<42}{found['seconds']:>6.0f} s  {short(found)}", flush=True)
    return found


def text_of(corpus: str) -> str:
    """A file by its absolute path: each check has a working folder of its own."""
    return str(Path(corpus).resolve()) if Path(corpus).exists() else corpus


def short(found: dict[str, Any]) -> str:
    """The figures of a result, in a line."""
    if not found["ok"]:
        return " | ".join(found["said"][-3:])[-400:]
    kept = {key: value for key, value in found.items() if key not in ("ok", "seconds", "validations", "export")}
    numbers = {key: f"{value:,.4g}" if isinstance(value, float) else value for key, value in kept.items()}
    return ", ".join(f"{key} {value}" for key, value in numbers.items())


def run(args: argparse.Namespace) -> dict[str, Any]:
    wanted = [name for name in CHECKS if any(name.startswith(start) for start in args.names or [""])]
    if args.small:
        wanted = [name for name in wanted if name in (*correctness.DRY, *speed.DRY)]
    found: dict[str, Any] = {}

    def check(name: str) -> None:
        found[name] = alone(name, args, Path(scratch))
        if args.json:  # After each: what was found is not lost if the whole is cut off.
            args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as scratch:
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(check, [name for name in wanted if name in correctness.TOGETHER]))
        for name in wanted:
            if name not in correctness.TOGETHER:
                check(name)
    return {name: found[name] for name in wanted}


def main() -> int:
    flags = argparse.ArgumentParser(prog="python -m tests.gpu.check", description=__doc__)
    flags.add_argument("names", nargs="*", help=f"checks whose names begin so, of: {'; '.join(CHECKS)} (default: all)")
    flags.add_argument("--corpus", default="python-docs", help="tiny Shakespeare's file (default: %(default)s)")
    flags.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="default: %(default)s")
    flags.add_argument("--small", action="store_true", help="a dry run: few checks, sizes that take seconds")
    flags.add_argument("--jobs", type=int, default=8, help="checks of correctness at once (default: %(default)s)")
    flags.add_argument("--patience", type=float, default=240.0, help="seconds for one check (default: %(default)s)")
    flags.add_argument("--json", type=Path, help="where the results go")
    flags.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    args = flags.parse_args()
    if args.folder:
        (name,) = args.names
        place = Place(args.folder, args.device, args.corpus, args.small)
        print(f"{RESULT}{json.dumps(CHECKS[name](place))}", flush=True)
        return 0
    found = run(args)
    failed = [name for name, result in found.items() if not result["ok"]]
    print(f"{len(found) - len(failed)} of {len(found)} checks passed{': not ' if failed else ''}{'; '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
