"""Every shipped config parses and can be planned; the debugging ones and the headers of recipes keep their word."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tinytf.cli.config.files import preset_names
from tinytf.cli.main import main
from tinytf.cli.plan import short

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
            value, wanted = value[key.removesuffix("+")], wanted[key]
        if leaf[-1].endswith("+"):  # The printed list has each class by its whole path, with all its arguments.
            value = [each["init_args"] for each in value]
            wanted = [both[0] | both[1]["init_args"] for both in zip(value, wanted, strict=True)]
        assert value == wanted or isinstance(wanted, (dict, type(None))), leaf


def test_the_shipped_shapes_suit_every_export() -> None:
    for path in CONFIGS:
        model = yaml.safe_load(path.read_text()).get("model", {})
        if path.name != "tiny.yaml" and "d_model" in model:
            assert model["d_model"] % 128 == 0, path
            assert model["d_model"] // model["n_heads"] in (32, 64), path


@pytest.mark.parametrize("name", preset_names())
def test_a_config_can_be_planned_by_its_name(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "loggers/mlflow":
        pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)  # A recipe's corpus is not here; a plan does not need it.
    whole = "d_model" in yaml.safe_load((REPOSITORY / f"configs/{name}.yaml").read_text()).get("model", {})
    configs = [*([] if whole else ["--config", "tiny"]), "--config", name]
    assert main(["plan", *configs, "--gpu", "A100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["this_run"]["tokens"] > 0


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("recipes/")])
def test_the_header_of_a_recipe_gives_loss_time_and_memory(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (REPOSITORY / f"configs/{name}.yaml").read_text().partition("\nname:")[0].splitlines()[1:]
    header = "\n".join(lines).replace("\n#  ", "").replace("# ", "")
    facts = dict(re.findall(r"^(Loss|Time|Memory): (.*)", header, re.MULTILINE))
    assert list(facts) == ["Loss", "Time", "Memory"]
    assert all(re.search(r"\bmeasured\b|computed by `tinytf plan", fact) for fact in facts.values())
    assert main(["plan", "--config", name, "--gpu", "A100", "--json"]) == 0
    assert f"{short(json.loads(capsys.readouterr().out)['model']['parameters'])} parameters" in header
    for command, figure in re.findall(r"computed by `tinytf (plan --[^`]*)`: ([\d.]+)", header):
        assert main(shlex.split(command)) == 0
        assert re.search(rf"\s{re.escape(figure)}\s", capsys.readouterr().out), f"{command} does not print {figure}"


def test_the_debug_configs_do_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journals = []
    for version, name in enumerate(("overfit", "profile", "step")):
        assert main(["fit", "--config", "tiny", "--config", f"debug/{name}"]) == 0
        lines = Path(f"checkpoints/debug/version_{version}/metrics.jsonl").read_text().splitlines()
        journals.append([json.loads(line) for line in lines])
    overfit, profile, step = journals
    losses = [row["train/loss"] for row in overfit if "train/loss" in row]
    assert losses[-1] < 1 < 3 < losses[0]
    assert [row["val/loss"] for row in overfit if "val/loss" in row][-1] > 2
    assert list(Path("checkpoints/debug/version_1/profile").iterdir())
    assert profile[-1]["event"] == step[-1]["event"] == "end"
    assert {"start", "metrics", "sample", "checkpoint", "end"} <= {row["event"] for row in step}
    assert Path("checkpoints/debug/version_2/best.ckpt").exists()
    assert Path("checkpoints/debug/version_2/export/export.json").exists()
