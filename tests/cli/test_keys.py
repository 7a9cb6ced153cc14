"""Every key of `tinytf fit` has a help line: what it counts, what it does, and what it is where nobody sets it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

import pytest

from tinytf.cli.config.help import EVALUATION, SECTIONS, help_text, keys_of
from tinytf.cli.config.keys import HELP, ConfigError
from tinytf.cli.config.parser import parser_of
from tinytf.cli.config.resume import TOKENIZER
from tinytf.cli.main import main

UNITS = re.split(
    r"\s+",
    """steps step tokens token features batches batch fraction share probability norm devices machines windows heads
    blocks bytes checkpoints validation validations entries processes seed epsilon base factor times width term""",
)


def keys() -> list[Any]:
    actions = [action for action in parser_of("fit")._actions if action.option_strings]
    return [a for a in actions if not a.dest.endswith("help") and a.dest not in ("print_config", "config")]


@pytest.fixture(scope="module", name="settings")
def all_keys() -> list[Any]:
    return [action for action in keys() if hasattr(action, "_typehint")]


def test_there_are_all_of_them(settings: list[Any]) -> None:
    assert {"trainer.max_steps", "model.optimizer", "data.corpus", "tracking.samples.prompts"} <= {
        action.dest for action in settings
    }
    assert len(settings) > 70


def test_each_says_what_it_does(settings: list[Any]) -> None:
    for action in settings:
        assert action.help, action.dest
        assert action.help is not argparse.SUPPRESS, action.dest
        assert len(action.help.split()) >= 3, f"{action.dest}: {action.help}"
        for markup in ("``", ":class:", ":paramref:", ":func:", "epoch", "Default:"):
            assert markup not in action.help, f"{action.dest}: {action.help}"


def test_each_number_says_what_it_counts(settings: list[Any]) -> None:
    for action in settings:
        if isinstance(action.default, (int, float)) and not isinstance(action.default, bool):
            words = set(re.findall(r"[a-z]+", action.help.lower()))
            assert words & set(UNITS), f"{action.dest}: {action.help}"


def test_each_that_may_be_null_says_what_that_means(settings: list[Any]) -> None:
    for action in settings:
        numeric = {int, float} & set(getattr(action._typehint, "__args__", ()))
        if action.default is None and numeric:
            assert re.search(r"\b(null|unset|none)\b", action.help), f"{action.dest}: {action.help}"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What --help prints, at a width."""

    def ask(*argv: str, columns: int = 100) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as end:
            main(list(argv))
        assert end.value.code == 0
        return capsys.readouterr().out

    return ask


def test_the_help_of_fit_has_a_sentence_of_each_key_by_section(settings: list[Any], shown: Callable[..., str]) -> None:
    lines = shown("fit", "--help", columns=80).splitlines()
    assert [line for line in lines if "usage" in line or line.startswith("   ")][:2] == lines[:2]
    assert [line.partition(":")[0] for line in lines if re.match("[a-z]+: ", line)][1:] == list(SECTIONS)
    assert max(map(len, lines)) <= 80
    at = {action.dest: [n for n, line in enumerate(lines) if f"{line} ".startswith(f"  --{action.dest} ")]
          for action in settings}  # fmt: skip
    assert [key for key, found in at.items() if len(found) != 1] == []
    wide = shown("fit", "--help", columns=1000)
    assert len(wide.splitlines()) < 150
    entries = [line for line in wide.splitlines() if line.startswith("  --")]
    assert [line for line in entries if not re.search(r"[.?]( \(.+\))?$", line)] == []
    assert re.search(r"--trainer.max_steps +Optimizer steps of the whole run\. \(int, default 1000\)\n", wide)
    assert re.search(r"--model.optimizer.lr .+\(float, default 0.003\)\n", wide)
    assert re.search(r"--trainer.matmul_precision .+ \(auto \| highest \| high \| medium, default auto\)\n", wide)


def test_a_section_and_a_key_are_shown_in_full(settings: list[Any], shown: Callable[..., str]) -> None:
    assert "They may be compressed (.gz, .zst, .bz2, .xz)." in " ".join(shown("fit", "--help", "data.corpus").split())
    data = " ".join(shown("fit", "--help", "data").split())
    texts = [" ".join(each.help.replace("%%", "%").split()) for each in settings if each.dest.startswith("data.")]
    assert [text for text in texts if text not in data] == []
    assert shown("fit", "-h", "lr") == shown("fit", "--help=model.optimizer.lr")
    assert "torch.optim.AdamW" in shown("fit", "--help", "optimizer")
    assert shown("fit", "--help", "samples").count("--tracking.samples.") == 4
    with pytest.raises(ConfigError, match="unknown key modle; did you mean model"):
        help_text(parser_of("fit"), "fit", "modle")


def test_an_evaluation_shows_what_it_uses(shown: Callable[..., str]) -> None:
    for command, split in (("validate", "val"), ("test", "test"), ("predict", "predict")):
        text = shown(command, "--help", columns=1000)
        keys = set(re.findall(r"^  --(\S+)", text, re.MULTILINE))
        assert {"ckpt_path", f"trainer.limit_{split}_batches", "data.corpus"} <= keys
        assert not keys & {"trainer.max_steps", "model.optimizer", "model.d_model", "checkpoint.save_top_k"}
        used = {f"{section}.{key}" for section, some in EVALUATION.items() for key in some.format(split).split()}
        # Of a setting with settings of its own, those are shown.
        assert {".".join(key.split(".")[:2]) if "." in key else f"run.{key}" for key in keys} == used - {
            "run.verbose" if command == "predict" else "run.return_predictions"
        }
        # A new key of the data is decided on here: these are of the training, or fixed by the checkpoint.
        data = {key.name for key in keys_of(parser_of(command)) if key.section == "data"}
        assert data - used == {"data.global_batch_size", *TOKENIZER}
    with pytest.raises(ConfigError, match="validate does not use it; see tinytf fit --help"):
        help_text(parser_of("validate"), "validate", "model.d_model")


def test_no_line_is_about_a_key_that_is_gone() -> None:
    known = {action.dest for name in ("fit", "validate", "test", "predict") for action in parser_of(name)._actions}
    assert set(HELP) <= known
