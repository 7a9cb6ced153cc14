"""onnxruntime and numpy, without torch or tinytf."""

from __future__ import annotations

import pytest

from tests.interop.conftest import CLIENTS, Bundle
from tests.interop.environments import answer, python_client


@pytest.mark.parametrize("version", ["onnxruntime", "onnxruntime==1.22.1"])
def test_the_graph_with_a_cache_writes_the_greedy_text(version: str, bundle: Bundle) -> None:
    python = python_client(version.replace("==", "-"), version, "numpy")
    ids = bundle.ids("Now is the winter")
    client = CLIENTS / "onnx_numpy.py"
    written = answer([python, client, bundle.folder / "model_kv.onnx", "24"], *map(str, ids))
    assert bundle.loaded.tokenizer.decode(written) == bundle.greedy("Now is the winter", 24)
