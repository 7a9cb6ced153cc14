"""`make fuzz N=20000`: many cases, counted by class and outcome; each failure with what repeats it."""

from __future__ import annotations

import argparse
import math
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.sandbox import Case, Result, Sandbox
from tests.fuzz.strategies import SHARES, strategies

PART = 250
"""Cases of one seed."""

FORMATS = "huggingface,onnx-kv,gguf-f32"

sandboxes: list[Sandbox] = []
"""This process's own, made at its first part."""


@dataclass
class Counts:
    """What a part, or all of them, came to."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: dict[str, list[str]] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    slowest: float = 0.0
    memory: int = 0

    def add(self, other: Counts) -> None:
        self.outcomes += other.outcomes
        for problem, cases in other.problems.items():
            self.problems.setdefault(problem, []).extend(cases)
        self.late += other.late
        self.slowest, self.memory = max(self.slowest, other.slowest), max(self.memory, other.memory)

    def __str__(self) -> str:
        kinds = sorted({kind for kind, _ in self.outcomes})
        outcomes = sorted({outcome for _, outcome in self.outcomes})
        rows = [f"{kind:<12}" + "".join(f"{self.outcomes[kind, o]:>10}" for o in outcomes) for kind in kinds]
        lines = [f"{'':<12}" + "".join(f"{o:>10}" for o in outcomes), *rows]
        lines.append(
            f"{sum(self.outcomes.values())} cases, slowest {self.slowest:.1f} s, largest {self.memory / 2**30:.1f} GiB"
        )
        for problem, cases in sorted(self.problems.items(), key=lambda item: -len(item[1])):
            lines += ["", f"{len(cases)} x {problem}", *(f"    {case}" for case in cases[:3])]
        return "\n".join(lines + [f"stopped: {case}" for case in self.late[:20]])


def sandbox_of(scratch: Path) -> Sandbox:
    """This process's own, with the template that lies there."""
    if not sandboxes:
        sandboxes.append(Sandbox(scratch / str(os.getpid()), scratch / "template"))
    return sandboxes[0]


def part(scratch: Path, kind: str, number: int, count: int) -> Counts:
    """The first cases of a class and seed."""
    sandbox, counts = sandbox_of(scratch), Counts()

    def record(case: Case, index: int) -> None:
        result = sandbox.result(case)
        counts.outcomes[kind, result.outcome] += 1
        counts.slowest, counts.memory = max(counts.slowest, result.seconds), max(counts.memory, result.memory)
        if result.late:
            counts.late.append(f"{case!r:.300}")
        if problem := result.problem(case):
            # A second time, in a process of its own: what an earlier case left behind is not this one's fault.
            sandbox.renew()
            again = sandbox.result(case).problem(case)
            label = problem if again else f"only after other cases: {problem}"
            shown = f"--repeat '{kind}:{number}:{count}:{index}'  {case!r:.1500}"
            counts.problems.setdefault(re.sub(r"0x[0-9a-f]+|\d{5,}", "N", label), []).append(shown)

    draw_cases(sandbox, kind, number, count, record)
    return counts


def draw_cases(sandbox: Sandbox, kind: str, number: int, count: int, record: Callable[[Case, int], None]) -> None:
    """Give the first ``count`` cases of a class and seed to a function.

    None is shrunk or kept: a case is known by its class, seed and number.
    """
    index = iter(range(10 * count))

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategies(sandbox)[kind])
    def each(case: Case) -> None:
        record(case, next(index))

    each()


def repeat(scratch: Path, what: str) -> int:
    """Run one case again, and print all of it."""
    kind, number, count, index = what.split(":")
    sandbox = Sandbox(scratch / str(os.getpid()), scratch / "template")
    found: list[Result] = []

    def record(case: Case, each: int) -> None:
        if each == int(index):
            found.append(sandbox.result(case))
            print(f"{case}\n{found[0]}\n{found[0].stdout[-2000:]}\n{found[0].stderr[-6000:]}\n{found[0].problem(case)}")

    draw_cases(sandbox, kind, int(number), int(count), record)  # What is drawn depends on how many there will be.
    sandbox.close()
    return int(not found)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("cases", nargs="?", type=int, default=2_000, help="how many, over all classes")
    parser.add_argument("--seed", type=int, default=0, help="of the first part of each class")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--kinds", help="only these classes, comma-separated")
    parser.add_argument("--repeat", metavar="KIND:SEED:COUNT:INDEX", help="one case, as a failure names it")
    parser.add_argument("--scratch", metavar="DIR", help="where to work; what takes a minute to make is kept there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tinytf-fuzz-") as temporary:
        scratch = Path(args.scratch or temporary).resolve()
        if not (scratch / "template").exists():
            Sandbox.make_template(scratch / "making", FORMATS).rename(scratch / "template")
        return repeat(scratch, args.repeat) if args.repeat else campaign(scratch, args)


def campaign(scratch: Path, args: argparse.Namespace) -> int:
    """Share the cases out to processes, and print after each part."""
    begun, total = time.monotonic(), Counts()
    shares = dict.fromkeys(args.kinds.split(","), 1.0) if args.kinds else SHARES
    parts = [
        (kind, args.seed + start // PART, min(PART, count - start))
        for kind, share in shares.items()
        for count in [math.ceil(share / sum(shares.values()) * args.cases)]
        for start in range(0, count, PART)
    ]
    parts.sort(key=lambda each: each[1])  # Every class early.
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(part, scratch, *each) for each in parts]):
            total.add(done.result())
            print(f"\n{time.monotonic() - begun:.0f} s: {total}", flush=True)
    return int(bool(total.problems))
