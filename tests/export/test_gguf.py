"""GGUF files: read back tensor by tensor always, run in llama.cpp where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from tests.export.small_model import TEXT, save_checkpoint, small_model, tokenizer_of
from tinytf.data.tokenizer import byte_pair_tokenizer, character_tokenizer
from tinytf.export import manifest
from tinytf.export.formats import FORMATS
from tinytf.export.formats import gguf as gguf_format
from tinytf.export.formats.gguf import F16, F32, Q8_0, Gguf, file_problems, from_llama_cpp, gguf_name, to_llama_cpp
from tinytf.export.formats.gguf.llama_cpp import open_llama_cpp, tokenizer_problems
from tinytf.export.parity.cases import Evaluation
from tinytf.export.parity.check import NOT_VERIFIED, PASSED, ParityCheck
from tinytf.export.parity.thresholds import with_overrides
from tinytf.weights.checkpoint import LoadedModel

gguf = pytest.importorskip("gguf")

KINDS = [F32, F16, Q8_0]


def loaded_of(tokenizer: Tokenizer, **changes: Any) -> LoadedModel:
    return LoadedModel(small_model(tokenizer.get_vocab_size(), **changes), tokenizer)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
@pytest.mark.parametrize("qk_norm", [True, False], ids=["qwen3", "llama"])
def test_every_tensor_comes_back(kind: Gguf, qk_norm: bool, tmp_path: Path) -> None:
    loaded = loaded_of(tokenizer_of("char"), qk_norm=qk_norm)
    kind.write(loaded, tmp_path / "model.gguf", None)
    assert file_problems(loaded, tmp_path / "model.gguf", kind.kind) == []


def test_weights_just_off_zero_come_back_as_q8_0_holds_them(tmp_path: Path) -> None:
    """As o_proj and down_proj are after a few steps: float16 scales below 6e-5 are rounded by a fixed amount."""
    loaded = loaded_of(tokenizer_of("char"))
    for size, layer in ((1e-5, 0), (1e-6, 1)):
        weight = loaded.model.state_dict()[f"layers.{layer}.self_attn.o_proj.weight"]
        weight.copy_(size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    Q8_0.write(loaded, tmp_path / "model.gguf", None)
    assert file_problems(loaded, tmp_path / "model.gguf", "Q8_0") == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
@pytest.mark.parametrize(
    "name",
    [
        "embed_tokens.weight",
        "layers.1.self_attn.q_proj.weight",
        "layers.0.mlp.gate_proj.weight",
        "layers.1.self_attn.k_norm.weight",
        "norm.weight",
    ],
)
def test_a_tensor_that_is_not_the_models_is_named(kind: Gguf, name: str, tmp_path: Path) -> None:
    loaded = loaded_of(tokenizer_of("char"))
    kind.write(loaded, tmp_path / "model.gguf", None)
    # A tenth of a row's largest value: several steps of 8 bits, less than any coarse check would see.
    weight = loaded.model.state_dict()[name]
    weight[-1] += 0.1 * weight.abs().max()
    assert file_problems(loaded, tmp_path / "model.gguf", kind.kind) == [f"tensor {gguf_name(name)} is not {name}"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_theta": 10_001.0}, "rope.freq_base is 10001.0 in the file and 10000.0 in the model"),
        ({"norm_eps": 1e-6}, "attention.layer_norm_rms_epsilon is "),
        ({"max_seq_len": 49}, "context_length is 49 in the file and 48 in the model"),
    ],
)
def test_a_shape_that_is_not_the_models_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    loaded, other = loaded_of(tokenizer_of("char")), loaded_of(tokenizer_of("char"), **changes)
    F32.write(other, tmp_path / "model.gguf", None)
    found = file_problems(loaded, tmp_path / "model.gguf", "F32")
    assert len(found) == 1
    assert found[0].startswith(said)


def test_llama_without_the_permutation_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = loaded_of(tokenizer_of("char"), qk_norm=False)
    monkeypatch.setattr(gguf_format, "to_llama_cpp", lambda name, weight, config: weight)
    F32.write(loaded, tmp_path / "model.gguf", None)
    found = file_problems(loaded, tmp_path / "model.gguf", "F32")
    assert len(found) == 4
    assert all("attn_q" in problem or "attn_k" in problem for problem in found)


def test_llama_rows_are_interleaved_head_by_head() -> None:
    """By hand: of a head's rows 0 1 2 3, halves (0, 1) and (2, 3), neighbours must be the pairs 0 2 and 1 3."""
    config = small_model(10, d_model=16, qk_norm=False).config
    rows = np.repeat(np.arange(8.0)[:, None], 16, axis=1)
    name = "layers.0.self_attn.k_proj.weight"
    there = to_llama_cpp(name, rows, config)
    assert there[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert np.array_equal(from_llama_cpp(name, there, config), rows)
    assert np.array_equal(to_llama_cpp("layers.0.self_attn.v_proj.weight", rows, config), rows)


def test_the_file_states_shape_and_tokenizer(tmp_path: Path) -> None:
    loaded = loaded_of(tokenizer_of("bpe"))
    F32.write(loaded, tmp_path / "model.gguf", None)
    fields = gguf.GGUFReader(str(tmp_path / "model.gguf")).fields
    config = loaded.model.config
    stated = {name: fields[name].contents() for name in fields}
    assert stated["general.architecture"] == "qwen3"
    assert stated["qwen3.context_length"] == config.max_seq_len
    assert stated["qwen3.attention.head_count_kv"] == config.kv_heads
    assert stated["qwen3.attention.key_length"] == config.head_size
    assert stated["qwen3.rope.freq_base"] == config.rope_theta
    assert stated["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(config.norm_eps)
    assert stated["tokenizer.ggml.model"] == "gpt2"
    tokens = stated["tokenizer.ggml.tokens"]
    assert [loaded.tokenizer.token_to_id(token) for token in tokens] == list(range(config.vocab_size))
    assert stated["tokenizer.ggml.eos_token_id"] == loaded.tokenizer.token_to_id("<|endoftext|>")


def test_what_tinytf_does_not_write_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that llama-cpp-python would compile, say; the file is otherwise the model's."""
    write = gguf_format._add_tokenizer

    def with_template(writer: Any, *arguments: Any) -> None:
        write(writer, *arguments)
        writer.add_chat_template("{{ evil }}")

    monkeypatch.setattr(gguf_format, "_add_tokenizer", with_template)
    loaded = loaded_of(tokenizer_of("char"))
    F32.write(loaded, tmp_path / "model.gguf", None)
    with pytest.raises(RuntimeError, match=r"it states tokenizer\.chat_template, which no file of tinytf does"):
        F32.validate_artifact(loaded, TEXT, tmp_path / "model.gguf")


def test_an_embedding_with_more_rows_than_tokens_is_filled_up(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("char")
    loaded = LoadedModel(small_model(tokenizer.get_vocab_size() + 3), tokenizer)
    F32.write(loaded, tmp_path / "model.gguf", None)
    fields = gguf.GGUFReader(str(tmp_path / "model.gguf")).fields
    assert len(fields["tokenizer.ggml.tokens"].contents()) == loaded.model.config.vocab_size


def test_added_tokens_are_whole_for_llama_cpp_too(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("bpe")
    tokenizer.add_tokens(["<poem>"])
    loaded = LoadedModel(small_model(tokenizer.get_vocab_size()), tokenizer)
    F32.write(loaded, tmp_path / "model.gguf", None)
    types = gguf.GGUFReader(str(tmp_path / "model.gguf")).get_field("tokenizer.ggml.token_type").contents()
    assert types[tokenizer.token_to_id("<poem>")] == gguf.TokenType.USER_DEFINED
    assert types[tokenizer.token_to_id("<|endoftext|>")] == gguf.TokenType.CONTROL
    text = "Now<poem> is\n<poem><poem>the winter"
    assert tokenizer_problems(tokenizer, text, tmp_path / "model.gguf") == []


def test_tokenizers_that_llama_cpp_has_not_are_refused() -> None:
    other = Tokenizer(models.WordLevel({"word": 0}, unk_token="word"))
    assert "neither by character nor" in str(F32.unsupported_reason(LoadedModel(small_model(10), other)))
    endless = byte_pair_tokenizer(iter([TEXT]), 300).to_str().replace("<|endoftext|>", "<|pad|>")
    without_end = LoadedModel(small_model(10), Tokenizer.from_str(endless))
    assert "no end-of-text token" in str(F32.unsupported_reason(without_end))


def test_a_text_without_end_ends_at_no_letter(tmp_path: Path) -> None:
    """Named or not, llama.cpp's other tokenizers have an end-of-text id."""
    loaded = loaded_of(character_tokenizer(TEXT, end_of_text=False))
    F32.write(loaded, tmp_path / "model.gguf", None)
    fields = gguf.GGUFReader(str(tmp_path / "model.gguf")).fields
    assert fields["tokenizer.ggml.model"].contents() == "rwkv"
    assert "tokenizer.ggml.eos_token_id" not in fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[loaded.tokenizer.token_to_id("\n")] == r"\n"
    assert tokens[loaded.tokenizer.token_to_id("—")] == "—"


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
@pytest.mark.parametrize("qk_norm", [True, False], ids=["qwen3", "llama"])
@pytest.mark.parametrize("name", ["gguf-f32", "gguf-f16", "gguf-q8_0"])
def test_the_verdict(name: str, qk_norm: bool, tokenizer: str, tmp_path: Path) -> None:
    """Passed where llama.cpp is there to say so, logits and token ids; not verified where it is not."""
    loaded = loaded_of(tokenizer_of(tokenizer), qk_norm=qk_norm)
    ids = np.array(loaded.tokenizer.encode(TEXT).ids)
    evaluation = Evaluation.from_ids(ids, "text", 48)
    loose = ["int8.kl=1", "int8.top1=0.5", "int8.loss=1", "fp16.kl=1e-4"]
    check = ParityCheck.of(loaded, evaluation, with_overrides(loose), 1)
    FORMATS[name].implementation.write(loaded, tmp_path / "model.gguf", None)
    outcome = check.run(FORMATS[name], tmp_path / "model.gguf")
    assert outcome.status == (PASSED if find_spec("llama_cpp") else NOT_VERIFIED), outcome.reasons


def test_a_file_that_does_not_hold_the_model_fails_without_llama_cpp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinytf.export import formats
    from tinytf.export.parity.check import FAILED

    hide: Callable[[str], Any] = lambda name: None if name == "llama_cpp" else find_spec(name)  # noqa: E731
    monkeypatch.setattr(formats, "find_spec", hide)
    loaded = loaded_of(tokenizer_of("char"))
    F32.write(loaded, tmp_path / "model.gguf", None)
    evaluation = Evaluation.from_ids(np.array(loaded.tokenizer.encode(TEXT).ids), "text", 48)
    loaded.model.embed_tokens.weight.data[-1] = 0
    outcome = ParityCheck.of(loaded, evaluation, with_overrides([]), 1).run(
        FORMATS["gguf-f32"], tmp_path / "model.gguf"
    )
    assert outcome.status == FAILED
    assert outcome.reasons[0] == "tensor token_embd.weight is not embed_tokens.weight"


FAKE = """
import os, signal
GGML_TYPE_F32, __version__ = 0, "fake"
llama_log_callback = lambda function: function
llama_log_set = lambda callback, data: None

class Llama:
    n_tokens = 0

    def __init__(self, path, **settings): {at_open}
    def tokenize(self, text, **settings): return list(text)
    def detokenize(self, ids): return bytes(ids)
    def reset(self): pass
    def eval(self, ids): os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.fixture
def fake_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A llama_cpp that is found before the real one, here and in the child process."""

    def install(at_open: str) -> None:
        (tmp_path / "fake").mkdir()
        (tmp_path / "fake" / "llama_cpp.py").write_text(FAKE.format(at_open=at_open))
        monkeypatch.syspath_prepend(tmp_path / "fake")

    return install


@pytest.mark.parametrize(
    ("at_open", "reason"),
    [
        ("pass", "RuntimeError: llama.cpp crashed (SIGSEGV)"),
        ("os.kill(os.getpid(), signal.SIGABRT)", "RuntimeError: llama.cpp crashed (SIGABRT)"),
        ("os._exit(3)", "RuntimeError: llama.cpp ended its process with exit code 3"),
        ("raise ValueError('bad magic')", "RuntimeError: ValueError: bad magic"),
        ("print('chatter')", "RuntimeError: llama.cpp crashed (SIGSEGV)"),
    ],
)
def test_a_runtime_that_crashes_fails_its_own_format_alone(
    at_open: str,
    reason: str,
    fake_llama_cpp: Callable[[str], None],
    loaded: LoadedModel,
    export: Callable[..., int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fake_llama_cpp(at_open)
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    assert export(checkpoint, "gguf-f32,torchscript") == 1
    content = manifest.read(checkpoint.parent / "export")
    assert [entry["name"] for entry in content["artifacts"]] == ["torchscript"]
    assert content["failed"][0]["reasons"][0] == reason


def test_a_crash_while_it_runs_names_the_signal(fake_llama_cpp: Callable[[str], None], tmp_path: Path) -> None:
    fake_llama_cpp("pass")
    runner = open_llama_cpp(tmp_path / "model.gguf", 1)
    assert runner.runtime == "llama.cpp (llama-cpp-python fake)"
    with pytest.raises(RuntimeError, match=r"llama\.cpp crashed \(SIGSEGV\)"):
        runner.logits(torch.zeros(1, 3, dtype=torch.long))
    runner.close()
