"""GGUF files: read back tensor by tensor always, run in llama.cpp where it is installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.export.small_model import (
    EVERYTHING,
    PROPERTIES,
    TEMPLATE,
    TEXT,
    chat_model,
    save_checkpoint,
    small_model,
    tokenizer_of,
)
from tinytf.data.tokenizer import byte_pair_tokenizer, character_tokenizer
from tinytf.export import manifest
from tinytf.export.formats import FORMATS
from tinytf.export.formats import gguf as gguf_format
from tinytf.export.formats.gguf import (
    F16,
    F32,
    PRE_TOKENIZERS,
    Q8_0,
    Gguf,
    file_problems,
    from_llama_cpp,
    gguf_name,
    pre_tokenizer_name,
    to_llama_cpp,
)
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


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
@pytest.mark.parametrize("changes", PROPERTIES.values(), ids=PROPERTIES)
def test_every_property_is_in_the_file(kind: Gguf, changes: dict[str, Any], tmp_path: Path) -> None:
    loaded, path = loaded_of(tokenizer_of("char"), **changes), tmp_path / "model.gguf"
    assert kind.unsupported_reason(loaded) is None
    kind.write(loaded, path, None)
    assert file_problems(loaded, path, kind.kind) == []
    # Read as a model without it, the file is another's.
    without = loaded_of(tokenizer_of("char"), qk_norm=changes.get("qk_norm", True))
    with suppress(RuntimeError):  # It states a key that no file of such a model has.
        assert file_problems(without, path, kind.kind)


def test_llama_3s_frequencies_are_the_factors_of_its_definition(tmp_path: Path) -> None:
    """By hand: turns within the original context of 16 decide, with 1 and 4 turns as the bounds."""
    loaded = loaded_of(tokenizer_of("char"), **PROPERTIES["llama3"])
    F32.write(loaded, tmp_path / "model.gguf", None)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(str(tmp_path / "model.gguf")).tensors}
    turns = 16 / (2 * math.pi)  # Of the first pair, a radian a position: 2.55, between the bounds.
    kept = (turns - 1) / (4 - 1)
    assert tensors["rope_freqs.weight"].data.tolist() == pytest.approx([1 / (kept + (1 - kept) / 4)] + [4.0] * 7)


@pytest.mark.parametrize("changed", ["rope_freqs.weight", "output.weight"])
def test_another_head_or_other_frequencies_are_named(changed: str, tmp_path: Path, monkeypatch: Any) -> None:
    loaded = loaded_of(tokenizer_of("char"), **EVERYTHING)
    add = gguf.GGUFWriter.add_tensor

    def off(self: Any, name: str, array: Any, **kind: Any) -> None:
        add(self, name, array * np.float32(1.001) if name == changed else array, **kind)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", off)
    F32.write(loaded, tmp_path / "model.gguf", None)
    (problem,) = file_problems(loaded, tmp_path / "model.gguf", "F32")
    assert problem.startswith(f"tensor {changed} is ")


def test_a_scaling_that_llama_cpp_has_not_is_refused() -> None:
    """Its qwen3 reads no rope_freqs.weight, and does not load a file that has one."""
    loaded = loaded_of(tokenizer_of("char"), **(PROPERTIES["llama3"] | {"qk_norm": True}))
    assert "qwen3 has no rope_scaling of rope_type llama3" in str(F32.unsupported_reason(loaded))


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
    loaded, path = loaded_of(tokenizer_of("char")), tmp_path / "model.gguf"
    with monkeypatch.context() as patch:
        patch.setattr(gguf_format, "PASS_THROUGH", "{{ evil }}")
        F32.write(loaded, path, None)
    with pytest.raises(RuntimeError, match=r"its tokenizer\.chat_template is not the model's"):
        F32.validate_artifact(loaded, TEXT, path)
    monkeypatch.setattr(gguf.GGUFWriter, "add_name", lambda self, name: self.add_string("general.source", name))
    F32.write(loaded, path, None)
    with pytest.raises(RuntimeError, match=r"it states general\.source, which no file of tinytf does"):
        F32.validate_artifact(loaded, TEXT, path)


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


def by_pattern(name: str) -> Tokenizer:
    """A byte-level BPE that cuts words as a pretrained model's of this pattern does."""
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    whole, bare = (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex) for regex in (True, False))
    stages = {
        "gpt-2": [whole],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), whole],
        "llama-bpe": [pre_tokenizers.Split(Regex(split % r"\p{N}{1,3}"), "isolated"), bare],
        "qwen2": [pre_tokenizers.Split(Regex(split % r"\p{N}"), "isolated"), bare],
    }[name]
    tokenizer = tokenizer_of("bpe")
    tokenizer.pre_tokenizer = stages[0] if len(stages) == 1 else pre_tokenizers.Sequence(stages)
    if name == "llama-bpe":
        tokenizer.model.ignore_merges = True
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_tokenizers_of_pretrained_models_are_named(name: str, tmp_path: Path) -> None:
    tokenizer, path = by_pattern(name), tmp_path / "model.gguf"
    F32.write(loaded_of(tokenizer), path, None)
    assert gguf.GGUFReader(str(path)).get_field("tokenizer.ggml.pre").contents() == name
    assert tokenizer_problems(tokenizer, f"{TEXT} 12345 x1y22, IT'S we'LL\r\n\n é🙂", path) == []


def test_a_pattern_with_other_settings_has_no_name() -> None:
    merging, normalized, prefixed = by_pattern("llama-bpe"), by_pattern("gpt-2"), by_pattern("smollm")
    merging.model.ignore_merges = False
    normalized.normalizer = normalizers.NFC()
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert [pre_tokenizer_name(each) for each in (merging, normalized, prefixed)] == [None] * 3


def test_what_the_tokenizer_puts_before_a_text_is_stated(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("bpe")
    tokenizer.add_special_tokens(["<|begin_of_text|>"])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    F32.write(loaded_of(tokenizer), tmp_path / "model.gguf", None)
    fields = gguf.GGUFReader(str(tmp_path / "model.gguf")).fields
    assert fields["tokenizer.ggml.bos_token_id"].contents() == begin
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True


def test_a_chat_template_is_in_the_file_and_another_is_not_opened(tmp_path: Path) -> None:
    loaded, path = chat_model(), tmp_path / "model.gguf"
    F32.write(loaded, path, None)
    assert gguf.GGUFReader(str(path)).get_field("tokenizer.chat_template").contents() == TEMPLATE
    end = gguf.GGUFReader(str(path)).get_field("tokenizer.ggml.eot_token_id").contents()
    assert loaded.tokenizer.id_to_token(end) == "<|im_end|>"
    assert F32.validate_artifact(loaded, TEXT, path) == []
    other = replace(loaded, entry={**loaded.entry, "chat_template": TEMPLATE + " "})
    with pytest.raises(RuntimeError, match=r"its tokenizer\.chat_template is not the model's"):
        F32.validate_artifact(other, TEXT, path)


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


@pytest.mark.parametrize(("text", "known"), [("a b\n", " "), ("ab\n", "\n"), ("ba", "a")])
@pytest.mark.parametrize("end_of_text", [True, False])
def test_a_character_stands_for_those_that_are_unknown(
    text: str, known: str, end_of_text: bool, tmp_path: Path
) -> None:
    loaded = loaded_of(character_tokenizer(text, end_of_text=end_of_text))
    F32.write(loaded, tmp_path / "model.gguf", None)
    stated = gguf.GGUFReader(str(tmp_path / "model.gguf")).get_field("tokenizer.ggml.unknown_token_id").contents()
    assert loaded.tokenizer.id_to_token(stated) == known
    assert F32.validate_artifact(loaded, text, tmp_path / "model.gguf") == []


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
llama_chat_format = type("module", (), {{}})

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
