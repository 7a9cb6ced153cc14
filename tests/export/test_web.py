"""The static page: what is in it, its runtime, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.export.small_model import Exported, chat_model
from tinytf.errors import UserError
from tinytf.export import manifest
from tinytf.export.formats.web import (
    ADDRESS,
    COPIES,
    ENGINE,
    GRAPH,
    LIBRARY,
    PAGE_FILES,
    VERSION,
    WEB,
    Runtime,
    write_page_settings,
)
from tinytf.weights.checkpoint import LoadedModel

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("transformers")


def settings(page: Path) -> dict[str, object]:
    lines = (page / "settings.js").read_text().splitlines()
    found = (re.fullmatch(r"export const (\w+) = (.*);", line) for line in lines)
    return {match[1]: json.loads(match[2]) for match in found if match}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """What npm makes, with files of a few bytes."""
    folder = tmp_path / "node_modules"
    stated = {LIBRARY: {"version": VERSION, "dependencies": {ENGINE: "1.31.0-dev"}}, ENGINE: {"version": "1.31.0-dev"}}
    for name, content in stated.items():
        (folder / name / "dist").mkdir(parents=True)
        (folder / name / "package.json").write_text(json.dumps({"name": name, **content}))
    for name, (package, file) in COPIES.items():
        (folder / package / file).write_text(f"// {name}")
    return folder


def test_the_page_holds_the_compared_graph_and_fetches_one_version(exported: Exported, loaded: LoadedModel) -> None:
    page = exported.folder / "web"
    assert (page / GRAPH).samefile(exported.folder / "model_kv.int8.onnx")
    entry = exported.entry("web")
    assert entry["status"] == "passed"
    assert entry["measured"] == exported.entry("onnx-int8")["measured"]
    assert {"max_abs"} <= set(entry["dequantized"])
    listed = {path.relative_to(exported.folder).as_posix() for path in page.rglob("*") if path.is_file()}
    assert listed == set(entry["sha256"])
    stated = settings(page)
    assert (stated["library"], stated["engine"]) == (ADDRESS, None)
    assert f"@{VERSION}/" in ADDRESS
    assert stated["start"] == loaded.start_token
    assert not any("http" in (page / name).read_text() for name in PAGE_FILES), "the address is in one place"
    assert "-m http.server --directory" in exported.said


def test_all_that_the_page_asks_for_is_in_it(exported: Exported) -> None:
    page = exported.folder / "web"
    html = (page / "index.html").read_text()
    asked = re.findall(r'(?:href|src)="([^":]+)"', html)
    asked += [
        name for file in ("app.js", "model.js") for name in re.findall(r'from "\./(.+)"', (page / file).read_text())
    ]
    assert asked
    assert all((page / name).is_file() for name in asked)
    ids = re.findall(r'\bat\("(\w+)"\)', (page / "app.js").read_text())
    assert ids
    assert all(f'id="{name}"' in html for name in ids)


def test_another_tokenizer_or_graph_fails(exported: Exported, loaded: LoadedModel, tmp_path: Path) -> None:
    WEB.write(loaded, tmp_path / "web", exported.folder / "model_kv.int8.onnx")
    assert WEB.validate_artifact(loaded, "", tmp_path / "web") == []
    chat_model().tokenizer.save(str(tmp_path / "web" / "model" / "tokenizer.json"))
    assert WEB.validate_artifact(loaded, "", tmp_path / "web") == ["model/tokenizer.json is not the model's"]


@pytest.mark.parametrize("place", ["node_modules", ".", f"node_modules/{LIBRARY}"])
def test_a_runtime_is_copied_in_and_nothing_is_fetched(
    place: str, packages: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    page = tmp_path / "web"
    page.mkdir()
    Runtime(packages.parent / place).add_to(page, loaded)
    stated = settings(page)
    assert "http" not in json.dumps(stated)
    files = [stated["library"], *stated["engine"].values()]  # type: ignore[attr-defined]
    assert [(page / str(name)).read_text() for name in files] == [f"// {name}" for name in COPIES if name != "LICENSE"]
    assert {f"web/{path.relative_to(page).as_posix()}" for path in page.rglob("*.*")} <= set(
        manifest.own_files(manifest.FORMATS["web"])
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / LIBRARY / "package.json").unlink(), f"it does not hold the package {LIBRARY}"),
        (
            lambda folder: (folder / LIBRARY / "package.json").write_text(
                f'{{"name": "{LIBRARY}", "version": "3.0.0"}}'
            ),
            f"its {LIBRARY} is '3.0.0'; give the node_modules that npm install {LIBRARY}@{VERSION} makes",
        ),
        (
            lambda folder: (folder / ENGINE / "package.json").write_text(f'{{"name": "{ENGINE}", "version": "1.0"}}'),
            f"it does not hold {ENGINE} 1.31.0-dev",
        ),
        (
            lambda folder: (folder / COPIES["transformers.min.js"][0] / "dist" / "transformers.min.js").unlink(),
            "is not there",
        ),
    ],
    ids=["no package", "another version", "another engine", "a file less"],
)
def test_a_folder_that_is_no_runtime_is_refused_by_name(
    change: Callable[[Path], None], said: str, packages: Path, exported: Exported, export: Callable[..., int]
) -> None:
    """Before anything is exported."""
    change(packages)
    with pytest.raises(UserError, match=re.escape(f"--runtime {packages}: ")) as caught:
        export(exported.checkpoint, "web", "--runtime", str(packages))
    assert said in str(caught.value)


def test_a_runtime_without_a_page_is_refused(packages: Path, exported: Exported, export: Callable[..., int]) -> None:
    with pytest.raises(UserError, match="add web to --formats"):
        export(exported.checkpoint, "huggingface", "--runtime", str(packages))


def test_settings_are_json_whatever_the_name(loaded: LoadedModel, tmp_path: Path) -> None:
    odd = LoadedModel(loaded.model, loaded.tokenizer, {"config": {"name": '"; alert(1); "\u2028'}})
    write_page_settings(odd, tmp_path, ADDRESS, None)
    assert settings(tmp_path)["name"] == odd.name
