"""One folder, four clients: transformers, transformers.js, optimum and onnxruntime-genai write what tinytf writes."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.interop.conftest import CLIENTS, Bundle
from tests.interop.environments import answer, node_client, python_client
from tinytf.export.formats.onnx.runtime import OnnxEngine
from tinytf.generation.decoding import Engine, TransformerEngine, decode
from tinytf.generation.sampling import Sampling

PROMPTS = ["Now is the winter", "Made glorious summer by this sun of York;\nAnd "]
COUNT = 20
"""New tokens."""

TRANSFORMERS_JS = "@huggingface/transformers@4.3.2"
GENERATE = CLIENTS / "transformers_generate.py"
TORCH = "torch==2.13.0"
GRAPHS = {"fp32": "model_kv.onnx", "q8": "model_kv.int8.onnx"}


def wanted(bundle: Bundle, prompt: str, graph: str | None = None) -> list[int]:
    """The prompt's ids and as many as a client writes, up to the token that ends a text; of PyTorch or of a graph."""
    engine: Engine = OnnxEngine(bundle.folder / graph) if graph else TransformerEngine(bundle.loaded.model)
    ids, end = bundle.ids(prompt), bundle.loaded.tokenizer.token_to_id("<|endoftext|>")
    new = torch.cat(list(islice(decode(engine, ids, Sampling(0.0), [0]), COUNT))).tolist()
    return ids + new[: new.index(end) + 1 if end in new else COUNT]


def check(found: dict[str, object], ids: list[int], bundle: Bundle) -> None:
    assert found["ids"] == ids
    assert found["text"] == bundle.loaded.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("version", ["transformers", "transformers==4.56.2"])
def test_transformers(version: str, prompt: str, bundle: Bundle) -> None:
    python = python_client(version.replace("==", "-"), TORCH, version)
    found = answer([python, GENERATE, bundle.folder / "huggingface", str(COUNT), prompt])
    check(found, wanted(bundle, prompt), bundle)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("dtype", GRAPHS)
def test_transformers_js(dtype: str, prompt: str, bundle: Bundle) -> None:
    folder = node_client("transformers.js", TRANSFORMERS_JS)
    client = CLIENTS / "transformers_js.mjs"
    found = answer(["node", client, f"{bundle.folder}/", "huggingface", dtype, str(COUNT), prompt], cwd=folder)
    check(found, wanted(bundle, prompt, GRAPHS[dtype] if dtype == "q8" else None), bundle)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("graph", ["model.onnx", "model_quantized.onnx"])
def test_optimum(graph: str, prompt: str, bundle: Bundle) -> None:
    python = python_client("optimum", TORCH, "optimum-onnx[onnxruntime]==0.1.0")
    found = answer([python, GENERATE, bundle.folder / "huggingface", str(COUNT), prompt, graph])
    check(found, wanted(bundle, prompt, GRAPHS["q8"] if "quantized" in graph else None), bundle)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_onnxruntime_genai(prompt: str, bundle: Bundle) -> None:
    """Its tokenizer does not open a vocabulary by character, so that such a model is given ids."""
    python = python_client("onnxruntime-genai", "onnxruntime-genai==0.18.0")
    text = prompt if bundle.loaded.name == "bpe" else str(bundle.ids(prompt)).replace(" ", "")
    found = answer([python, Path(CLIENTS, "genai_generate.py"), bundle.folder / "huggingface", str(COUNT), text])
    assert found["ids"] == wanted(bundle, prompt)
