"""Every shipped config parses on top of the smallest one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tinytf.cli.main import main

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))


def leaves(node: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, (*prefix, key))
    else:
        yield prefix


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


def test_the_shipped_shapes_suit_every_export() -> None:
    for path in CONFIGS:
        model = yaml.safe_load(path.read_text()).get("model", {})
        if path.name != "tiny.yaml" and "d_model" in model:
            assert model["d_model"] % 128 == 0, path
            assert model["d_model"] // model["n_heads"] in (32, 64), path
