"""Every command in README and docs/ is run, on a model small enough for a test; so is every block of Python."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, REPOSITORY, blocks, commands
from tests.weights.folders import write_folder
from tinytf.cli.main import main

COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))

SMALLER = (
    (r"^(tinytf (?!plan).*)configs/(base|medium|recipes/\w+)\.yaml", r"\1configs/tiny.yaml"),
    (r"^(tinytf (?!plan).*)--config (base|medium|recipes/\w+)\b", r"\1--config tiny"),
    (r"checkpoints/base/", "checkpoints/tiny/"),
    (r"--trainer\.max_steps \d+", "--trainer.max_steps 20"),
    (r"--config fine-tune", "--config fine-tune --trainer.max_steps 2 --data.seq_len 32"),
    (r"--model\.base smollm2", "--model.base pretrained --data.seq_len 32"),
    (r"(--data\.tokenizer bpe)", r"\1 --data.vocab_size 300"),
    (r"(--config configs/export\.yaml)", r"\1 --export.formats [huggingface]"),
    (r"^(tinytf export (?!.*--formats).*)", r"\1 --formats huggingface,onnx-kv"),
)
"""What stands in a command for the test: the tiny model, few formats, a small vocabulary."""

PARSED = (
    (r"scale/(ddp|fsdp)", "needs several devices: tests/end_to_end/test_ddp.py and test_fsdp.py train with two"),
    (r"debug/", "tests/cli/test_configs.py trains with each"),
    (r"loggers/wandb", "needs an account: tests/run/test_loggers.py logs offline"),
    (r"loggers/mlflow", "needs the extra mlflow: tests/run/test_loggers.py has it"),
    (r"hf://|s3://|gs://|https?://", "needs a network: tests/data serves such corpora locally"),
)
"""Commands that a test cannot run to the end: their flags and files are parsed."""

NOT_RUN = (
    (r"^pip install", "installs: tests/packaging/test_wheel.py installs the wheel"),
    (r"^npm install", "installs: tests/interop/test_web_page.py installs it"),
    (r"--runtime npm/", "needs npm's packages: tests/export/test_web.py makes such a folder"),
    (r"^python -m http\.server", "serves until it is stopped"),
    (r"^docker ", "needs Docker"),
    (r"^sbatch ", "needs a SLURM cluster"),
    (r"torchrun", "needs several machines"),
    (r"^\. \.venv/bin/activate$", "sets the shell's path"),
    (
        r"--name (sums|talk)",
        "the pages after it would measure them: tests/cli/test_chat.py trains and asks such models",
    ),
    (r"convert\.py|--model smollm2", "needs a model of 98 MB: tests/weights/test_smollm2.py converts and asks it"),
    (r"^tinytf serve |^curl ", "serves until it is stopped: tests/serve starts it and asks it"),
    (r"^(vllm|llama-server) ", "not a program of this project"),
    (r"^jq ", "not a Python package"),
    (r"python -m tests\.benchmarks ", "measures for minutes"),
    (r"^python -m onnxruntime_genai", "not in an extra, and not made by this project"),
)
"""Commands that no test runs, and why."""


def reason(command: str, table: tuple[tuple[str, str], ...]) -> str | None:
    return next((why for pattern, why in table if re.search(pattern, command)), None)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages name, in which the tiny model is trained."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    (folder / "books").mkdir()
    text = "".join(f"The {n}th line of a text is not like line {n * n % 97}.\n" for n in range(2000))
    (folder / "my.txt").write_text(text)
    (folder / "books" / "one.txt").write_text(text)
    (folder / "src" / "deep").mkdir(parents=True)
    # All of them have the characters of my.txt, on which the page measures whichever run is then the newest.
    code = "".join(f"x{n} = {n * n % 97}  # {line}\n" for n, line in enumerate(text.splitlines()))
    (folder / "src" / "deep" / "code.py").write_text(code)
    (folder / "notes.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in text.splitlines()))
    write_folder(folder / "pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", "configs/tiny.yaml"]) == 0
    return folder


@pytest.fixture(scope="module")
def bundle(workplace: Path) -> Path:
    """The export of that run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        ckpt = "checkpoints/tiny/version_0/best.ckpt"
        assert main(["export", "--ckpt_path", ckpt, "--formats", "huggingface,onnx-kv"]) == 0
    return workplace / "checkpoints" / "tiny" / "version_0" / "export"


def smaller(text: str) -> str:
    for pattern, replacement in SMALLER:
        text = re.sub(pattern, replacement, text)
    return text


def exit_code(argv: list[str]) -> object:
    try:
        return main(argv)
    except SystemExit as end:  # --help and --print_config end so.
        return end.code


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[:60])
def test_a_command_runs(
    command: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if why := reason(command, NOT_RUN):
        pytest.skip(why)
    monkeypatch.chdir(workplace)
    command = re.sub(r'^eval "\$\((.*)\)"$', r"\1", command)
    command = smaller(command)
    parsed = reason(command, PARSED)
    words = shlex.split(command)
    words = words[: next((place for place, word in enumerate(words) if word in ("|", ">")), None)]
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        monkeypatch.setenv(name, value)
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=REPOSITORY, check=True, capture_output=True)
    elif words[0] == "python":
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        subprocess.run([sys.executable, *words[1:]], env=environment, check=True)
    else:
        assert words[0] == "tinytf", "not a command that the test knows how to run"
        if "/export" in command:
            request.getfixturevalue("bundle")
        assert exit_code([*words[1:], *(["--print_config"] if parsed else [])]) == 0


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in (*PARSED, *NOT_RUN)])
def test_each_exception_is_needed(pattern: str) -> None:
    assert [command for command in COMMANDS if re.search(pattern, command)]


def test_the_python_of_each_page_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    for page in PAGES:
        code = smaller("\n".join(blocks(page, "python")))
        exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page, "yaml")])
def test_a_yaml_block_is_a_config(block: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    Path("block.yaml").write_text(block)
    assert exit_code(["fit", "--config", "configs/tiny.yaml", "--config", "block.yaml", "--print_config"]) == 0
