"""A folder of static files: a page that runs the model in the browser, through transformers.js and onnxruntime-web."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tinytf.data.tokenizer import encode, tokenizer_from_file
from tinytf.errors import UserError
from tinytf.export.folder import link_or_copy
from tinytf.export.formats import Writer
from tinytf.export.formats.card import example_prompt
from tinytf.export.formats.huggingface import HUGGINGFACE, MAX_JSON, SETTINGS, write_settings
from tinytf.export.formats.onnx.quantize import INT8
from tinytf.export.parity.runner import Runner
from tinytf.utils.files import read_text
from tinytf.utils.text import read_json
from tinytf.weights.checkpoint import LoadedModel

LIBRARY, VERSION = "@huggingface/transformers", "4.3.2"
ADDRESS = f"https://cdn.jsdelivr.net/npm/{LIBRARY}@{VERSION}/dist/transformers.min.js"
"""What the page fetches where it has no runtime of its own; it then fetches the onnxruntime-web of its version."""

ENGINE, ENGINE_FILE = "onnxruntime-web", "ort-wasm-simd-threaded.asyncify"
COPIES = {
    "transformers.min.js": (LIBRARY, "dist/transformers.min.js"),
    f"{ENGINE_FILE}.mjs": (ENGINE, f"dist/{ENGINE_FILE}.mjs"),
    f"{ENGINE_FILE}.wasm": (ENGINE, f"dist/{ENGINE_FILE}.wasm"),
    "LICENSE": (LIBRARY, "LICENSE"),
}
"""Files of ``runtime/``, and the packages that they are copied from; onnxruntime-web (MIT) has no license file."""

PAGE = Path(__file__).parent / "page"
PAGE_FILES = ("index.html", "style.css", "app.js", "model.js")
PAGE_SETTINGS = "settings.js"
GRAPH = "model/onnx/model_quantized.onnx"
"""Where transformers.js looks for a graph of 8 bits."""

WEB_FILES = (*PAGE_FILES, PAGE_SETTINGS, GRAPH, *(f"model/{name}" for name in SETTINGS))
WEB_FILES = (*WEB_FILES, *(f"runtime/{name}" for name in COPIES))


class Web(Writer):
    """The page, and beside it the graph of onnx-int8 in a folder as transformers.js expects it."""

    def unsupported_reason(self, loaded: LoadedModel) -> str | None:
        return HUGGINGFACE.unsupported_reason(loaded) or INT8.unsupported_reason(loaded)

    def write(self, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        assert base is not None
        path.mkdir()
        for name in PAGE_FILES:
            shutil.copyfile(PAGE / name, path / name)
        (path / "model").mkdir()
        write_settings(loaded, path / "model")
        link_or_copy(base, path / GRAPH)
        write_page_settings(loaded, path, ADDRESS, None)

    def open_runner(self, path: Path, threads: int) -> Runner:
        return INT8.open_runner(path / GRAPH, threads)

    def validate_artifact(self, loaded: LoadedModel, text: str, path: Path) -> list[str]:
        problems = INT8.validate_artifact(loaded, text, path / GRAPH)
        tokenizer = tokenizer_from_file(path / "model" / "tokenizer.json")
        same = tokenizer.to_str() == loaded.tokenizer.to_str()
        return problems if same else [*problems, "model/tokenizer.json is not the model's"]

    def open_dequantized(self, loaded: LoadedModel, path: Path, threads: int) -> Runner:
        return INT8.open_dequantized(loaded, path / GRAPH, threads)


WEB = Web()


def write_page_settings(loaded: LoadedModel, path: Path, library: str, engine: dict[str, str] | None) -> None:
    """``settings.js``: what differs from page to page.

    Args:
        library: address of transformers.js.
        engine: addresses of onnxruntime-web's two files; None leaves them to the library.
    """
    config = loaded.model.config
    try:
        start = loaded.start_token if loaded.start_token is not None else encode(loaded.tokenizer, "\n")[0]
    except UserError:  # An alphabet without a line feed.
        start = 0
    settings: dict[str, Any] = {
        "library": library,
        "engine": engine,
        "name": loaded.name,
        "facts": f"{config.parameter_count:,} parameters, step {loaded.step}, context of {config.max_seq_len} tokens",
        "prompt": "Hello" if loaded.chat_template else example_prompt(loaded.tokenizer),
        "start": start,
        "template": loaded.chat_template,
    }
    lines = [f"export const {name} = {json.dumps(value)};\n" for name, value in settings.items()]
    (path / PAGE_SETTINGS).write_text("".join(lines), encoding="utf-8")


class Runtime:
    """The packages that a page runs with, in a folder of the user's.

    Args:
        folder: a ``node_modules``, the folder that has one, or the package of transformers.js.

    Raises:
        UserError: if a package or a file of it is not there, or is of another version than the page is written for.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        places = (folder / LIBRARY, folder / "node_modules" / LIBRARY, folder)
        library = next((place for place in places if self._package(place).get("name") == LIBRARY), None)
        if library is None:
            raise UserError(f"--runtime {folder}: it does not hold the package {LIBRARY}; {self._install()}")
        stated = self._package(library)
        if stated.get("version") != VERSION:
            raise UserError(f"--runtime {folder}: its {LIBRARY} is {stated.get('version')!r}; {self._install()}")
        engines = (library / "node_modules" / ENGINE, library.parent.parent / ENGINE)
        engine = next((place for place in engines if self._package(place).get("name") == ENGINE), None)
        needed = stated.get("dependencies")
        wanted = needed.get(ENGINE) if isinstance(needed, dict) else None
        if engine is None or self._package(engine).get("version") != wanted:
            raise UserError(f"--runtime {folder}: it does not hold {ENGINE} {wanted}; {self._install()}")
        homes = {LIBRARY: library, ENGINE: engine}
        self._files = {name: homes[package] / file for name, (package, file) in COPIES.items()}
        for file in self._files.values():
            if not file.is_file():
                raise UserError(f"--runtime {folder}: {file} is not there; {self._install()}")

    def add_to(self, path: Path, loaded: LoadedModel) -> None:
        """Copy it into a page, which then fetches nothing from elsewhere."""
        (path / "runtime").mkdir()
        for name, file in self._files.items():
            shutil.copyfile(file, path / "runtime" / name)
        engine = {kind: f"./runtime/{ENGINE_FILE}.{kind}" for kind in ("mjs", "wasm")}
        write_page_settings(loaded, path, "./runtime/transformers.min.js", engine)

    def _package(self, place: Path) -> dict[str, Any]:
        file = place / "package.json"
        content = read_json(read_text(file, what="--runtime", limit=MAX_JSON), file) if file.is_file() else None
        return content if isinstance(content, dict) else {}

    def _install(self) -> str:
        return f"give the node_modules that npm install {LIBRARY}@{VERSION} makes"
