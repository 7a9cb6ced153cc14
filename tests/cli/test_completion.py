"""Completion as the shells ask for it: the script is evaluated, and asked with the words typed so far."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tinytf.cli.main import COMMANDS, main

REPOSITORY = Path(__file__).parents[2]

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
complete_with=$(complete -p tinytf | sed -E 's/.*-F ([^ ]+).*/\\1/')
"$complete_with" tinytf "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "tinytf.bash"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as out:
        patch.setattr("sys.stdout", out)
        assert main(["completion", "bash"]) == 0
    return path


@pytest.fixture
def offered(script: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    (tmp_path / "base.yaml").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "mine.ckpt").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "own.yml").touch()
    for name in ("mine", "odd-1"):
        (tmp_path / "checkpoints" / name / "version_0").mkdir(parents=True)

    def ask(*typed: str) -> set[str]:
        done = subprocess.run(
            ["bash", "--norc", "-c", ASK, "bash", str(script), "tinytf", *typed],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        return set(done.stdout.split())

    return ask


@pytest.mark.parametrize(
    ("typed", "among"),
    [
        ([""], set(COMMANDS)),
        (["fi"], {"fit"}),
        (["fit", "--model.d"], {"--model.d_model", "--model.d_ff", "--model.dropout"}),
        (["fit", "--model.optimizer.mu"], {"--model.optimizer.muon_lr"}),
        (["fit", "--config", ""], {"base.yaml", "folder", "tiny", "loggers/wandb"}),
        (["plan", "--config", "ti"], {"tiny"}),
        (["fit", "--config", "folder/"], {"folder/own.yml"}),
        (["fit", "--name", ""], {"mine", "odd-1"}),
        (["generate", "--name", "m"], {"mine"}),
        (["validate", "--ckpt_path", "checkpoints/m"], {"checkpoints/mine"}),
        (["fit", "--ckpt_path", ""], {"best", "last", "mine.ckpt"}),
        (["fit", "--trainer.precision", "bf"], {"bf16-mixed", "bf16-true"}),
        (["fit", "--model.qk_norm", ""], {"true", "false"}),
        (["fit", "--model.optimizer", "tinytf"], {"tinytf.training.MuonAdamW"}),
        (["fit", "--data.corpus", "sh"], {"shakespeare", "shakespeare-complete"}),
        (["validate", "--ckpt_path", "b"], {"best"}),
        (["generate", "--top"], {"--top_k", "--top_p"}),
        (["generate", "--device", "c"], {"cpu", "cuda"}),
        (["inspect", "--diff", "l"], {"last"}),
        (["export", "--output_dir", ""], {"folder"}),
        (["runs", "--sort", "s"], {"started", "state", "step", "seconds"}),
        (["completion", ""], {"bash", "zsh"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash_offers(typed: list[str], among: set[str], offered) -> None:  # type: ignore[no-untyped-def]
    assert among <= offered(*typed)


def test_an_evaluation_is_offered_what_it_uses(offered) -> None:  # type: ignore[no-untyped-def]
    assert offered("validate", "--trainer.limit_") == {"--trainer.limit_val_batches"}


def test_a_config_is_a_yaml_file(offered) -> None:  # type: ignore[no-untyped-def]
    assert "notes.txt" not in offered("fit", "--config", "")


def test_zsh_reads_its_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef tinytf")
    for name in (*COMMANDS, "--model.d_model", "best last", "*.y(a|)ml", "loggers/wandb", "_tinytf_run_names"):
        assert name in script
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    (tmp_path / "_tinytf").write_text(script)
    subprocess.run(["zsh", "-n", str(tmp_path / "_tinytf")], check=True)


def test_another_shell_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 2
    assert "bash" in capsys.readouterr().err
