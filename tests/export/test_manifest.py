"""A manifest from a stranger: its names are looked up in our own tables, and lead nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.export.small_model import save_checkpoint
from tinytf.cli.verify import run as run_verify
from tinytf.errors import UserError
from tinytf.weights.checkpoint import LoadedModel


@pytest.fixture(scope="module")
def bundle(loaded: LoadedModel, export: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = save_checkpoint(tmp_path_factory.mktemp("home") / "run" / "best.ckpt", loaded)
    assert export(checkpoint, "torchscript,huggingface") == 0
    return checkpoint.parent / "export"


@pytest.fixture
def victims(bundle: Path) -> list[Path]:
    """A file and a folder next to the bundle, above it, and in it."""
    made = []
    for place in (bundle.parent, bundle.parent.parent, bundle):
        (place / "thesis").mkdir(exist_ok=True)
        for path in (place / "victim", place / "thesis" / "chapter.txt"):
            path.write_text("years of work")
            made.append(path)
    return made


def first(content: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = content["artifacts"][0]
    return entry


HOSTILE: list[tuple[str, Callable[[dict[str, Any], Path], None]]] = [
    ("absolute path", lambda content, home: first(content).update(file=str(home / "victim"))),
    ("absolute folder", lambda content, home: first(content).update(file=str(home / "thesis"))),
    ("folder above", lambda content, home: first(content).update(file="../../thesis")),
    ("file above", lambda content, home: first(content).update(file="../victim")),
    ("nested", lambda content, home: first(content).update(file="huggingface/../../victim")),
    ("folder within", lambda content, home: first(content).update(file="thesis")),
    ("another of ours", lambda content, home: first(content).update(file="huggingface")),
    ("no text", lambda content, home: first(content).update(file=["victim"])),
    ("another name", lambda content, home: first(content).update(name="../victim")),
    ("no entry", lambda content, home: content["artifacts"].insert(0, "../victim")),
    ("twice", lambda content, home: content["artifacts"].append(first(content))),
    ("evaluation", lambda content, home: content["evaluation"].update(file="../victim")),
    ("reference", lambda content, home: content["reference"].update(file=str(home / "victim"))),
    ("runtime file", lambda content, home: content["runtime_files"].update({"../victim": "0" * 64})),
    ("thresholds", lambda content, home: content["thresholds"].update(fp32={"max_abs": "1"})),
]


@pytest.mark.parametrize("change", [change for _, change in HOSTILE], ids=[name for name, _ in HOSTILE])
def test_a_name_that_is_not_ours_is_refused_and_nothing_is_touched(
    change: Callable[[dict[str, Any], Path], None], bundle: Path, victims: list[Path], export: Callable[..., int]
) -> None:
    path = bundle / "export.json"
    good = path.read_text()
    content = json.loads(good)
    change(content, bundle.parent.parent)
    path.write_text(json.dumps(content))
    try:
        for command in (
            lambda: run_verify([str(bundle)]),
            lambda: export(bundle.parent / "best.ckpt", "torchscript"),
            lambda: export(bundle.parent / "best.ckpt", "huggingface"),
        ):
            with pytest.raises(UserError, match=r"export\.json: "):
                command()
    finally:
        path.write_text(good)
    assert [victim.read_text() for victim in victims] == ["years of work"] * len(victims)


@pytest.mark.parametrize("sums", [{"../victim": "0"}, {"/etc/passwd": "0"}, {"huggingface/../../victim": "0"}])
def test_names_among_the_sums_lead_nowhere(
    sums: dict[str, str], bundle: Path, victims: list[Path], export: Callable[..., int]
) -> None:
    path = bundle / "export.json"
    good = path.read_text()
    content = json.loads(good)
    first(content)["sha256"].update(sums)
    path.write_text(json.dumps(content))
    try:
        for command in (lambda: run_verify([str(bundle)]), lambda: export(bundle.parent / "best.ckpt", "huggingface")):
            with pytest.raises(UserError, match=r"and must be model\.torchscript\.pt"):
                command()
    finally:
        path.write_text(good)
    assert [victim.read_text() for victim in victims] == ["years of work"] * len(victims)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", "null", '{"format": "1"}'], ids=lambda text: text[:9])
def test_what_is_no_manifest_is_one_line(
    text: str, loaded: LoadedModel, export: Callable[..., int], tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "best.ckpt", loaded)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "export.json").write_text(text)
    (tmp_path / "export" / "mine.txt").write_text("mine")
    for command in (lambda: run_verify([str(tmp_path / "export")]), lambda: export(checkpoint, "torchscript")):
        with pytest.raises(UserError, match=r"export\.json") as caught:
            command()
        assert "\n" not in str(caught.value)
    assert (tmp_path / "export" / "mine.txt").read_text() == "mine"


def test_the_recorded_place_of_the_checkpoint_is_not_read(bundle: Path, tmp_path: Path) -> None:
    path = bundle / "export.json"
    good = path.read_text()
    content = json.loads(good)
    (tmp_path / "best.ckpt").mkdir()  # Reading it as a file would raise.
    content["checkpoint"]["path"] = str(tmp_path / "best.ckpt")
    path.write_text(json.dumps(content))
    try:
        assert run_verify([str(bundle)]) == 0
    finally:
        path.write_text(good)
