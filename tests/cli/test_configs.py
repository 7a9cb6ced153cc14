"""Every shipped config parses, and every key in it is read by something."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer as LightningTrainer

from tinytf.cli.main import main

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
TOP = {"seed_everything", "name", "trainer", "model", "data", "checkpoint", "tracking", "export", "ckpt_path"}


def leaves(node: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, (*prefix, key))
    else:
        yield prefix


def names_read(sources: list[Path]) -> set[str]:
    """Every attribute and variable that some code reads, as opposed to sets or declares."""
    found: set[str] = set()
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)  # group["momentum"]
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_config_parses_on_top_of_tiny(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(REPOSITORY / "configs/tiny.yaml"), "--config", str(path), "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    for leaf in leaves(yaml.safe_load(path.read_text())):
        value, wanted = printed, yaml.safe_load(path.read_text())
        for key in leaf:
            value, wanted = value[key], wanted[key]
        assert value == wanted or isinstance(wanted, (dict, type(None))), leaf


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_key_is_read(path: Path) -> None:
    read = names_read(list((REPOSITORY / "tinytf").rglob("*.py")))
    lightning = set(inspect.signature(LightningTrainer.__init__).parameters)
    for leaf in leaves(yaml.safe_load(path.read_text())):
        assert leaf[0] in TOP, leaf
        name = leaf[-1]
        if leaf[0] == "trainer":
            assert leaf[1] in lightning, leaf
        if leaf[:-1] == ("trainer",) or name in ("class_path", "init_args") or isinstance(name, int):
            continue
        assert name in read, f"{path}: nothing reads {'.'.join(leaf)}"


def test_a_key_that_nothing_reads_would_be_found() -> None:
    read = names_read(list((REPOSITORY / "tinytf").rglob("*.py")))
    assert "surely_nobody_reads_this" not in read
    assert {"every_n_steps", "save_top_k", "seq_len", "warmup_steps", "momentum"} <= read


def test_the_shipped_shapes_suit_every_export() -> None:
    for path in CONFIGS:
        model = yaml.safe_load(path.read_text()).get("model", {})
        if path.name != "tiny.yaml" and "d_model" in model:
            assert model["d_model"] % 128 == 0, path
            assert model["d_model"] // model["n_heads"] in (32, 64), path
