"""What `tinytf fit` says of a run at its start and at its end, and that what it says to do next works as it stands."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.stress.campaign import arguments, prepare
from tinytf.cli import fit, paste
from tinytf.cli.config.files import read_arguments
from tinytf.cli.config.parser import find_checkpoint
from tinytf.cli.main import main
from tinytf.errors import UserError

REPEATED = {"trainer.max_steps": 20, "trainer.val_check_interval": 400, "trainer.limit_val_batches": 1,
            "data.batch_size": 128, "checkpoint.every_n_steps": 0, "tracking.samples.every_n_validations": 1,
            "tracking.samples.prompts": '["to be", "or"]', "tracking.samples.max_new_tokens": 2}  # fmt: skip
"""A small text, read many times; validated in part, and at the end alone."""


def fresh(settings: dict[str, object], *flags: str) -> list[str]:
    return [*(flag for flag in arguments(settings) if not flag.startswith("--ckpt_path")), *flags]


def test_a_run_ends_with_its_best_checkpoint_and_commands_that_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    assert main(fresh(REPEATED, "--checkpoint.dir=all runs")) == 0
    said = capfd.readouterr().err.splitlines()
    run = Path("all runs/killed/version_0")
    assert f"run {run}: 20 steps, " in said[0]
    of_what = f"run {run}: 4,464 parameters; text.txt (tokenizer char): "
    assert f"{of_what}2,149 tokens of training text, read 19 times" in said[1]
    assert "a model learns it by heart and val/loss rises; give more text, or trainer.max_steps 16" in said[2]
    (best,) = run.glob("step-0000020-val_loss-*.ckpt")
    at = said.index(f"best checkpoint: {best}, val/loss {best.stem.rpartition('-')[2]}")
    assert f"run {run}: finished at step 20 of 20 in 0:0" in said[at - 1]
    assert said[at + 1] == "next:"
    generate, validate, export, dashboard = (shlex.split(line) for line in said[at + 2 :])
    assert [generate[1], validate[1], export[1]] == ["generate", "validate", "export"]
    assert dashboard[1:] == ["--logdir", "all runs"]
    assert main(generate[1:]) == 0
    assert capfd.readouterr().out.startswith("to be")
    assert main(validate[1:]) == 0
    shown = capfd.readouterr()
    assert "val/loss" in shown.out
    assert "measured on the first 1 batches of 128 windows of the split (trainer.limit_val_batches 1)" in shown.err
    assert "is measured on the whole split" in shown.err
    assert main([*validate[1:], "--trainer.limit_val_batches=1"]) == 0
    assert "was measured on" not in capfd.readouterr().err
    monkeypatch.setattr(
        "tinytf.export.bundle.export_checkpoint", lambda *args, own, **rest: {"failed": not own, "artifacts": []}
    )
    monkeypatch.setattr("tinytf.cli.export.print_result", lambda *args, **settings: None)
    assert main(export[1:]) == 0  # It is of the user's own runs: else the file of its text would not be opened.


def test_a_run_that_is_not_validated_says_so_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    assert main(fresh({"trainer.max_steps": 1, "trainer.limit_val_batches": 0})) == 0
    said = capfd.readouterr().err
    assert "trainer.limit_val_batches is 0: nothing is validated, so there will be no best checkpoint" in said
    assert "best checkpoint: none, because nothing was validated" in said
    assert "generate --ckpt_path checkpoints/killed/version_0/last.ckpt" in said


def test_a_run_that_ends_within_its_warmup_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    assert main(fresh({"trainer.max_steps": 2, "model.schedule.warmup_steps": 2})) == 0
    assert "warmup_steps is 2: this run of 2 steps ends before" in capfd.readouterr().err


def test_a_prompt_that_begins_with_a_dash_can_be_pasted() -> None:
    from tinytf.cli.generate import parser

    config = {
        "checkpoint": {"dir": "checkpoints"}, "export": {"at_end": True},
        "tracking": {"samples": {"prompts": ["-- to be"]}, "tensorboard": False},
    }  # fmt: skip
    generate, _ = fit.next_commands(config, "run", "best.ckpt")
    assert parser().parse_args(shlex.split(generate)[2:]).prompt == "-- to be"


def test_a_run_on_another_drive_is_named_by_its_whole_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_way(path: str) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(paste.os.path, "relpath", no_way)
    assert paste.from_here(Path("D:/runs")) == str(Path("D:/runs"))


def test_a_program_is_named_as_the_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "my tools"
    tools.mkdir()
    for name in ("python", "tinytf"):
        (tools / name).touch(mode=0o755)
    monkeypatch.setattr(paste.sys, "executable", str(tools / "python"))
    monkeypatch.setenv("PATH", str(tools))
    assert paste.console_script("tinytf") == "tinytf"
    monkeypatch.setenv("PATH", "")
    assert paste.console_script("tinytf") == shlex.quote(str(tools / "tinytf"))
    monkeypatch.chdir(tmp_path)
    assert paste.console_script("tinytf") == "'my tools/tinytf'"
    (tools / "tinytf").unlink()  # As after `pip install --user`.
    assert paste.console_script("tinytf") == "tinytf"


def test_a_name_that_no_run_has_is_refused_beside_last_but_starts_what_a_config_describes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "tinytf")

    def start(*flags: str) -> object:
        return find_checkpoint("fit", read_arguments(["--ckpt_path", "last", *flags]), required=True)

    assert start("--name", "books") is None  # A new folder: nothing could be meant by the name but a new run.
    for name in ("books", "tiny"):
        folder = tmp_path / "checkpoints" / name / "version_0"
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
    with pytest.raises(UserError, match=r"--name bokos: no run in checkpoints has that name; did you mean books\?.*"):
        start("--name", "bokos")
    with pytest.raises(UserError, match="there are books, tiny; to start one of that name, leave --ckpt_path out"):
        start("--name=zzz")
    with pytest.raises(UserError, match=r"--name bokos: .* did you mean books\?$"):
        find_checkpoint("validate", read_arguments(["--ckpt_path", "best", "--name", "bokos"]), required=True)
    Path("new.yaml").write_text("name: new\n")
    assert start("--config", "new.yaml") is None
    assert "--ckpt_path last: no intact checkpoint yet in checkpoints/new, starting fresh" in caplog.text
