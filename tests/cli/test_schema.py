"""The JSON Schema of the YAML files: what the command prints, what takes every shipped config and no broken one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tinytf.cli.config.schema import schema
from tinytf.cli.main import main

REPOSITORY = Path(__file__).parents[2]
FILE = REPOSITORY / "configs" / "tinytf.schema.json"
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))

BROKEN = [
    "modle: {d_model: 128}",
    "model: {d_modle: 128}",
    "model: {d_model: wide}",
    "model: {d_model: null}",
    "model: {d_model: [128]}",
    "model: 3",
    "model: {compile: maybe}",
    "model: {vocab_size: 5}",
    "model: {seed: 5}",
    "model: {optimizer: {class_path: tinytf.training.MuonAdamW, init_args: {lrr: 0.1}}}",
    "model: {optimizer: {class_path: torch.optim.AdamW, init_args: {muon_lr: 0.1}}}",
    "model: {optimizer: {init_args: {lr: 0.1}, lr: 3}}",
    "model: {schedule: {class_path: tinytf.training.Linear, init_args: {warmup_steps: soon}}}",
    "model: {schedule: {class_path: tinytf.training.Constant, init_args: {final_fraction: 0.1}}}",
    "trainer: {max_epochs: 3}",
    "trainer: {precision: bf8}",
    "trainer: {callbacks: [{init_args: {monitor: val/loss}}]}",
    "trainer: {max_steps: 1.5}",
    "data: {batch_size: many}",
    "data: {corpus: [a.txt]}",
    "checkpoint: {every_steps: 5}",
    "tracking: {wandb: true}",
    "tracking: {wandb: {projct: mine}}",
    "tracking: {samples: {prompts: [1]}}",
    "export: {formats: onnx}",
    "export: {formats: [onyx]}",
    "seed_everything: lucky",
    "weights_only: false",
    "- trainer",
]

GOOD = [
    "model: {optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.001, betas: [0.9, 0.95]}}}",
    "model: {optimizer: torch.optim.SGD}",
    "model: {optimizer: {class_path: my.package.Lion, init_args: {anything: [1, 2]}}}",
    "model: {optimizer: {init_args: {lr: 0.1}}}",
    "model: {schedule: {class_path: Cosine, init_args: {end_step: 100}}}",
    "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: val/loss}}]}",
    "trainer: {devices: 2, strategy: ddp, gradient_clip_val: null}",
    "tracking: {wandb: null, mlflow: {experiment: mine}}",
    "ckpt_path: last",
]


@pytest.fixture(scope="module", name="shipped")
def the_shipped_file() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(content)
    return content


def test_the_file_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config-schema"]) == 0
    said = capsys.readouterr()
    assert said.out == FILE.read_text(encoding="utf-8"), "tinytf config-schema > configs/tinytf.schema.json"
    assert said.err == ""


def test_it_is_the_same_in_another_home_and_at_another_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shipped: dict[str, Any]
) -> None:
    for name in ("HOME", "TINYTF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert schema() == shipped
    text = FILE.read_text(encoding="utf-8")
    assert not re.search(r"/home/|/root|/tmp|0x[0-9a-f]{6}|site-packages", text)


def test_every_object_refuses_unknown_keys_and_every_key_says_what_it_does(shipped: dict[str, Any]) -> None:
    def look(node: dict[str, Any], place: str) -> None:
        assert node.get("additionalProperties") is False, place
        for key, value in node["properties"].items():
            assert len(value.get("description", "")) > 10, f"{place}.{key}"
            if "properties" in value:
                look(value, f"{place}.{key}")
            elif key not in ("name", "ckpt_path"):
                assert "default" in value, f"{place}.{key}"

    look(shipped, "")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_shipped_config_is_valid_and_names_the_schema(path: Path, shipped: dict[str, Any]) -> None:
    text = path.read_text(encoding="utf-8")
    first = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", text.splitlines()[0])
    assert first, f"{path}: its first line names no schema"
    assert (path.parent / first[1]).resolve() == FILE
    Draft202012Validator(shipped).validate(yaml.safe_load(text))


@pytest.mark.parametrize("text", GOOD)
def test_what_the_parser_takes_is_valid(text: str, shipped: dict[str, Any]) -> None:
    Draft202012Validator(shipped).validate(yaml.safe_load(text))


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_broken_is_not(text: str, shipped: dict[str, Any]) -> None:
    assert not Draft202012Validator(shipped).is_valid(yaml.safe_load(text))
