"""The bundle's ONNX graphs in the Hugging Face folder, where transformers.js, optimum and onnxruntime-genai look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tinytf.data.tokenizer import begin_of_text_id
from tinytf.export.folder import link_or_copy
from tinytf.export.formats import FORMATS
from tinytf.export.formats.huggingface import end_ids, pad_token
from tinytf.export.formats.onnx.cached_graph import INPUTS, PAST, PRESENT
from tinytf.utils.files import sha256_of
from tinytf.weights.checkpoint import LoadedModel

FOLDER = FORMATS["huggingface"].file
GRAPHS = {"onnx-kv": f"{FOLDER}/onnx/model.onnx", "onnx-int8": f"{FOLDER}/onnx/model_quantized.onnx"}
"""Second names of artifacts, in the bundle: those of Hugging Face's clients for float32 and for 8 bits."""

GENAI = f"{FOLDER}/genai_config.json"
ADDED = (*GRAPHS.values(), GENAI)


def add_graphs(bundle: Path, artifacts: list[dict[str, Any]], loaded: LoadedModel) -> None:
    """Give the bundle's graphs their second names, and onnxruntime-genai its config; ``artifacts`` lists them then.

    The second name is a hard link: a copy of the bundle may hold the graphs twice. What an earlier export left under
    it is replaced, because the graph may be another now, or gone.
    """
    entries = {entry["name"]: entry for entry in artifacts}
    if "huggingface" not in entries:
        return
    listed = entries["huggingface"]["sha256"]
    for name in ADDED:
        if listed.pop(name, None):
            (bundle / name).unlink()
    for format, name in GRAPHS.items():
        if format in entries:
            link_or_copy(bundle / FORMATS[format].file, bundle / name)
            listed[name] = entries[format]["sha256"][FORMATS[format].file]
    if "onnx-kv" in entries:
        config = json.dumps(genai_config(loaded), indent=2)
        (bundle / GENAI).write_text(f"{config}\n", encoding="utf-8")
        listed[GENAI] = sha256_of(bundle / GENAI)


def genai_config(loaded: LoadedModel) -> dict[str, Any]:
    """What onnxruntime-genai asks for besides graph and tokenizer: sizes, names of inputs, where a text ends."""
    config, tokenizer = loaded.model.config, loaded.tokenizer
    # It takes no null and no id outside of the vocabulary. Without an end it writes on to the length asked for.
    tokens = {
        "bos_token_id": begin_of_text_id(tokenizer),
        "eos_token_id": end_ids(loaded),
        "pad_token_id": tokenizer.token_to_id(pad_token(loaded) or ""),
    }
    return {
        "model": {
            "type": "qwen3" if config.qk_norm else "llama",
            "vocab_size": config.vocab_size,
            "context_length": config.max_seq_len,
            **{name: value for name, value in tokens.items() if value is not None},
            "decoder": {
                "filename": GRAPHS["onnx-kv"].removeprefix(f"{FOLDER}/"),
                "session_options": {"provider_options": []},
                "hidden_size": config.d_model,
                "head_size": config.head_size,
                "num_attention_heads": config.n_heads,
                "num_key_value_heads": config.kv_heads,
                "num_hidden_layers": config.n_layers,
                "inputs": {
                    **{name: name for name in INPUTS},
                    **{f"past_{half}_names": f"{PAST}.%d.{half}" for half in ("key", "value")},
                },
                "outputs": {
                    "logits": "logits",
                    **{f"present_{half}_names": f"{PRESENT}.%d.{half}" for half in ("key", "value")},
                },
            },
        },
        "search": {"max_length": config.max_seq_len, "past_present_share_buffer": False},
    }
