"""Model cards: what a model is, where it came from, and how each runtime is called, in lines that can be pasted.

``huggingface/README.md`` is the hub's; ``README.md`` of a bundle has a section for each kind of file in it. The tests
run every block of both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from tokenizers import Tokenizer

from tinytf import __version__
from tinytf.data.tokenizer import begin_of_text_id, encode, is_by_character, special_tokens
from tinytf.errors import UserError
from tinytf.export.formats import FORMATS
from tinytf.model import TransformerConfig
from tinytf.utils.text import printable
from tinytf.weights.checkpoint import LoadedModel

NEW = 40
"""Tokens that an example writes, or as many as the context holds."""

SHOWN = 400
"""Characters of an alphabet: of 5,000 nobody reads the rest."""


def hub_card(loaded: LoadedModel) -> str:
    """``README.md`` of the Hugging Face folder, with the head that the hub reads."""
    name = layout(loaded.model.config)
    base = loaded.entry.get("base")
    on_hub = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(\?.*)?", str(base.get("name"))) if isinstance(base, dict) else None
    base_line = f"base_model: {on_hub[1]}\n" if on_hub else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [tinytf, {name.lower()}]
{base_line}---
{_head(loaded)}
{_transformers(loaded, ".")}
{_manner(loaded)} It was not tested for anything beyond the losses that the run recorded.
"""


def bundle_card(loaded: LoadedModel, formats: Collection[str], *, modelfile: bool) -> str:
    """``README.md`` of a bundle.

    Args:
        formats: names of those in it.
        modelfile: whether there is a Modelfile for Ollama.
    """

    def first(*names: str) -> str | None:
        return next((FORMATS[name].file for name in names if name in formats), None)

    parts = [_head(loaded)]
    if "huggingface" in formats:
        parts.append(_transformers(loaded, "huggingface"))
    if path := first("onnx-kv", "onnx-int8", "onnx-int4"):
        parts.append(_with_cache(loaded, path))
    if path := first("onnx"):
        parts.append(_plain_graph(loaded, path))
    for name, opened in (
        ("pt2", 'torch.export.load("{}").module()'), ("torchscript", 'torch.jit.load("{}")'),
    ):  # fmt: skip
        if name in formats:
            parts.append(_torch_program(loaded, FORMATS[name].file, opened))
    if path := first("web"):
        parts.append(f"\n## A browser\n\n```bash\npython -m http.server --directory {path}\n```\n")
    if path := first("gguf-f16", "gguf-q8_0", "gguf-f32"):
        parts.append(_llama_cpp(loaded, path, modelfile=modelfile))
    numbers = "`export.json` says how far each file is from the checkpoint, and `tinytf verify .` measures it again."
    return "\n".join([*parts, f"{_manner(loaded)} {numbers}\n"])


def layout(config: TransformerConfig) -> str:
    """The architecture of transformers that has the model's layers."""
    return "Qwen3" if config.qk_norm else "Llama"


def _head(loaded: LoadedModel) -> str:
    config, base, averaged = loaded.model.config, loaded.entry.get("base"), loaded.entry.get("averaged_by")
    corpus = loaded.entry.get("data", {}).get("corpus", "see the checkpoint")
    facts = {
        "Layout": f"{layout(config)}: {config.n_layers} layers, {config.d_model} wide, {config.n_heads} heads of "
        f"{config.head_size} ({config.kv_heads} key-value), {'' if config.tie_embeddings else 'un'}tied embeddings",
        "Parameters": f"{config.parameter_count:,}",
        "Vocabulary": f"{config.vocab_size:,} {'characters' if is_by_character(loaded.tokenizer) else 'tokens'}",
        "Context": f"{config.max_seq_len} tokens, prompt and continuation together",
        **({"Base model": _base_in_words(base)} if isinstance(base, dict) else {}),
        **({"Adapter": "LoRA, merged into the base model's weights"} if loaded.unmerged else {}),
        **({"Weights": f"averages, by {averaged}"} if isinstance(averaged, str) and averaged.isidentifier() else {}),
        "Trained on": corpus if isinstance(corpus, str) else json.dumps(corpus),
        "Steps": loaded.step,
        "Checkpoint (sha256)": f"`{loaded.sha256}`",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""# {loaded.name}

A small language model trained with tinytf {__version__}.

| | |
|---|---|
{rows}
{_alphabet(loaded.tokenizer)}"""


def _alphabet(tokenizer: Tokenizer) -> str:
    """What a tokenizer by character knows, and what runtimes do with the rest."""
    if not is_by_character(tokenizer):
        return ""
    known = sorted(entry for entry in tokenizer.get_vocab(with_added_tokens=False) if len(entry) == 1)
    more = f"\n… and {len(known) - SHOWN:,} more (`tokenizer.json`)" if len(known) > SHOWN else ""
    endless = "" if max(known) < "\x80" else (
        " It does not return from one whose first bytes begin one of these: check texts before it reads them."
    )  # fmt: skip
    return f"""
It reads and writes these characters alone (in JSON's spelling). transformers raises an error at another, llama.cpp
reads a blank for each byte of it.{endless}

```text
{json.dumps("".join(known[:SHOWN]), ensure_ascii=False)}{more}
```
"""


def _base_in_words(base: dict[str, Any]) -> str:
    known = {name: base.get(name) for name in ("kind", "revision", "sha256")}
    details = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
    return printable(f"`{base.get('name')}` ({details})").replace("|", r"\|")


def _manner(loaded: LoadedModel) -> str:
    if loaded.chat_template is None:
        return "It continues text in the manner of what it was trained on; it was not tuned to follow instructions."
    return "It answers in the manner of what it was trained on."


def _transformers(loaded: LoadedModel, folder: str) -> str:
    """A section on transformers, and on what reads the same folder."""
    prompt = _prompt(loaded)
    inputs = f'inputs = tokenizer({prompt}, return_tensors="pt")'
    if loaded.chat_template is not None:
        inputs = """messages = [{"role": "user", "content": "Hello"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""
    prefix = ""
    if begin_of_text_id(loaded.tokenizer) is None:
        # lm_eval scores a text's first token after a token that begins texts; it raises a TypeError without one.
        feed = loaded.tokenizer.token_to_id("\n")
        prefix = f",prefix_token_id={0 if feed is None else feed}"
    return f"""
## transformers, vLLM, lm-evaluation-harness

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}")
{inputs}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens={_new(loaded)})[0]))
```

```bash
vllm serve {folder}
lm_eval run --model hf --model_args pretrained={folder},dtype=float32{prefix} --tasks lambada_openai
```

For llama.cpp, use the GGUF files that `tinytf export` writes: `convert_hf_to_gguf.py` knows tokenizers by their
checksums, and no tokenizer that was made for one model.
"""


def _with_cache(loaded: LoadedModel, path: str) -> str:
    return f"""
## onnxruntime

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("{path}")
past = {{
    node.name: np.zeros((1, node.shape[1], 0, node.shape[3]), np.float32)
    for node in session.get_inputs()
    if node.name.startswith("past_key_values")
}}
ids = new = {_ids(loaded)}
for _ in range({_new(loaded)}):
    feed = {{
        "input_ids": np.array([new]),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids) - len(new), len(ids))[None],
    }}
    logits, *present = session.run(None, {{**feed, **past}})
    past = dict(zip(past, present))
    new = [int(logits[0, -1].argmax())]
    ids = ids + new
print(tokenizer.decode(ids, skip_special_tokens=False))
```
"""


def _plain_graph(loaded: LoadedModel, path: str) -> str:
    return f"""
## onnxruntime, and others that take a graph without a cache

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
ids = {_ids(loaded)}
logits = onnxruntime.InferenceSession("{path}").run(None, {{"input_ids": np.array([ids])}})[0]
print(tokenizer.decode([*ids, int(logits[0, -1].argmax())], skip_special_tokens=False))
```
"""


def _torch_program(loaded: LoadedModel, path: str, opened: str) -> str:
    return f"""
## PyTorch alone: {path}

```python
import torch
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
model = {opened.format(path)}
ids = {_ids(loaded)}
with torch.inference_mode():
    for _ in range({_new(loaded)}):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
print(tokenizer.decode(ids, skip_special_tokens=False))
```
"""


def _llama_cpp(loaded: LoadedModel, path: str, *, modelfile: bool) -> str:
    prompt, context = _prompt(loaded), loaded.model.config.max_seq_len
    ask = f"create_completion({prompt}, max_tokens={_new(loaded)}, temperature=0)"
    take = 'print(answer["choices"][0]["text"])'
    if loaded.chat_template is not None:
        ask = 'create_chat_completion([{"role": "user", "content": "Hello"}])'
        take = 'print(answer["choices"][0]["message"]["content"])'
    ollama = f'\nollama create {_ollama_name(loaded)} -f Modelfile\nollama run {_ollama_name(loaded)} "…"'
    without = "\nOllama reads this model's tokenizer as another one, and drops characters: there is no Modelfile.\n"
    return f"""
## llama.cpp

```python
from llama_cpp import Llama

llama = Llama("{path}", n_ctx={context}, verbose=False)
answer = llama.{ask}
{take}
```

```bash
llama-server -m {path} -c {context}{ollama if modelfile else ""}
```
{"" if modelfile else without}"""


def _ollama_name(loaded: LoadedModel) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", loaded.name.lower()).strip("-._") or "tinytf"


def _prompt(loaded: LoadedModel) -> str:
    """As a literal of Python."""
    return json.dumps(example_prompt(loaded.tokenizer), ensure_ascii=False)


def _ids(loaded: LoadedModel) -> str:
    return f"tokenizer.encode({_prompt(loaded)}, add_special_tokens=False).ids"


def _new(loaded: LoadedModel) -> int:
    prompt = len(encode(loaded.tokenizer, example_prompt(loaded.tokenizer)))
    return max(1, min(NEW, loaded.model.config.max_seq_len - prompt))


def example_prompt(tokenizer: Tokenizer) -> str:
    """A word that it can encode: one by character knows only the characters of its text."""
    with suppress(UserError):
        encode(tokenizer, "Once")
        return "Once"
    known = set(tokenizer.get_vocab(with_added_tokens=False)) - set(special_tokens(tokenizer))
    return next((token for token in sorted(known) if token.isprintable() and not token.isspace()), "")
