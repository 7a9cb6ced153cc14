"""One small model and one export of it, shared by the tests of this room: writing ONNX takes seconds."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest

from tests.export.small_model import LOOSE, TEXT, Exported, save_checkpoint, small_model, tokenizer_of
from tinytf.cli import export as export_command
from tinytf.export.formats import FORMATS
from tinytf.export.parity import runner
from tinytf.export.parity.cases import Evaluation
from tinytf.weights.checkpoint import LoadedModel


@pytest.fixture(autouse=True, scope="session")
def a_short_measurement() -> Iterator[None]:
    """No test asserts a speed, and most export."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "REPEATS", 1)
        patch.setattr(runner, "NEW", 4)
        yield


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    tokenizer = tokenizer_of("char")
    return LoadedModel(small_model(tokenizer.get_vocab_size()), tokenizer, {"config": {"name": "trial"}}, 7)


@pytest.fixture(scope="session")
def evaluation(loaded: LoadedModel) -> Evaluation:
    ids = np.random.default_rng(0).integers(0, loaded.model.config.vocab_size, 500)
    return Evaluation.from_ids(ids, "random ids", loaded.model.config.max_seq_len)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held_out.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def export(text_file: Path) -> Callable[..., int]:
    """Run the command on a checkpoint with the shared text and loose thresholds for what is rounded."""

    def run(checkpoint: Path, formats: str, *flags: str) -> int:
        loose = [flag for setting in LOOSE for flag in ("--threshold", setting)]
        shared = ["--ckpt_path", str(checkpoint), "--formats", formats, "--text", str(text_file)]
        return export_command.run([*shared, *loose, *flags])

    return run


@pytest.fixture(scope="session")
def exported(
    loaded: LoadedModel, export: Callable[..., int], text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """Every format that can be written here."""
    checkpoint = save_checkpoint(tmp_path_factory.mktemp("run") / "version_0" / "best.ckpt", loaded)
    names = [name for name, format in FORMATS.items() if not format.missing("writing")]
    with redirect_stderr(io.StringIO()) as said:
        code = export(checkpoint, ",".join(names))
    folder = checkpoint.parent / "export"
    content = json.loads((folder / "export.json").read_text())
    return Exported(checkpoint, folder, content, code, said.getvalue(), text_file)
