"""A part of `make fuzz` that is the same each time: some cases of each class that takes milliseconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import pytest

from tests.fuzz.campaign import part, sandbox_of
from tests.fuzz.sandbox import Case, Sandbox

if not hasattr(os, "fork"):
    pytest.skip("cases run in forked children, which Windows has not", allow_module_level=True)
pytest.importorskip("gguf")
pytest.importorskip("safetensors")

COUNTS = {
    "light": 40,
    "argv": 25,
    "config": 15,
    "checkpoint": 20,
    "run": 15,
    "bundle": 4,
    "corpus": 6,
    "tokenizer": 5,
}


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    # Children are not forked from this process: after tests that started the threads of pyarrow and tokenizers, a
    # child waits for ever for a lock that one of them held.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory, process: ProcessPoolExecutor) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    process.submit(Sandbox.make_template, folder / "template", "huggingface,gguf-f32").result()
    return folder


@pytest.mark.parametrize("kind", COUNTS)
def test_every_case_ends_in_a_result_or_in_a_line(kind: str, scratch: Path, process: ProcessPoolExecutor) -> None:
    counts = process.submit(part, scratch, kind, 0, COUNTS[kind]).result()
    assert sum(counts.outcomes.values()) == COUNTS[kind]
    assert not counts.problems, str(counts)


# -- the sandbox sees what it is there for -----------------------------------------------------------------------------


PLANTED = {
    "traceback": "raise ValueError('planted')",
    "must not: open": "open('/etc/tinytf-planted', 'w')",
    "must not: socket.": "import socket; socket.create_connection(('127.0.0.1', 9))",
    "must not: os.system": "import os; os.system('true')",
    "must not: subprocess.Popen": "import subprocess; subprocess.run(['touch', 'x'])",
    "changed outside": "import pathlib; pathlib.Path('../canary/kept.txt').write_text('x')",
    "changed outside its folders: ['work/text.txt'": "import os; os.remove('text.txt')",
    "killed by signal 11": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "MemoryError": "bytearray(2**40)",
    "without a line": "import sys; sys.exit(2)",
    "control characters": "import sys; sys.stderr.write('\\x1b[2J')",
}
"""What is found, and code in a command's place that must be found."""


def plant(scratch: Path, code: str) -> tuple[str, str]:
    """What is wrong with a case whose command is this code, and with the same case after it."""
    sandbox, case = sandbox_of(scratch), Case("planted", ["runs"])
    sandbox.renew()
    # The child is forked after it.
    with mock.patch("tinytf.cli.main.dispatch", side_effect=lambda argv: exec(code) or 0):
        problem = sandbox.result(case).problem(case)
    sandbox.renew()
    return problem, sandbox.result(case).problem(case)


@pytest.mark.parametrize("found", PLANTED)
def test_a_planted_fault_is_seen(found: str, scratch: Path, process: ProcessPoolExecutor) -> None:
    problem, after = process.submit(plant, scratch, PLANTED[found]).result()
    assert found in problem
    assert not after, "the folder is not as it was"
