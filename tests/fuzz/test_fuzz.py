"""A part of `make fuzz` that is the same each time: some cases of each class that takes milliseconds."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given

from tests.fuzz.campaign import generate_only
from tests.fuzz.sandbox import Case, Sandbox
from tests.fuzz.strategies import strategies

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
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    folder = tmp_path_factory.mktemp("fuzz")
    made = Sandbox(folder / "box", Sandbox.make_template(folder / "template", "huggingface,gguf-f32"))
    yield made
    made.close()


@pytest.mark.parametrize("kind", COUNTS)
def test_every_case_ends_in_a_result_or_in_a_line(kind: str, sandbox: Sandbox) -> None:
    @generate_only(COUNTS[kind], derandomize=True)
    @given(strategies(sandbox)[kind])
    def each(case: Case) -> None:
        result = sandbox.result(case)
        problem = result.problem(case)
        assert not problem, f"{case!r:.3000}\n{result.stderr[-3000:]}"

    each()


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


@pytest.mark.parametrize("found", PLANTED)
def test_a_planted_fault_is_seen(found: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinytf.cli import main

    def planted(argv: list[str]) -> int:
        exec(PLANTED[found])
        return 0

    sandbox.renew()
    with monkeypatch.context() as patch:
        patch.setattr(main, "dispatch", planted)  # The child is forked after it.
        case = Case("planted", ["runs"])
        problem = sandbox.result(case).problem(case)
    sandbox.renew()
    assert found in problem
    assert not sandbox.result(case).problem(case), "the folder is not as it was"
