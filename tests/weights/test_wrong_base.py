"""What no base can be, refused in one line that names the property, the file or the key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.wrong_input import lines_of, refused, says
from tests.export.small_model import TEXT
from tests.weights.folders import LLAMA3, write_config, write_folder, write_tokenizer
from tinytf.errors import UserError
from tinytf.weights.base import open_base

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
SMOL = {"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"]}

PROPERTIES: list[tuple[dict[str, Any], list[str]]] = [
    ({"model_type": "gpt2"}, ["model_type is 'gpt2'", "learned positions"]),
    ({"model_type": "qwen2"}, ["model_type is 'qwen2'", "attention_bias"]),
    ({"model_type": "qwen3_moe"}, ["model_type is 'qwen3_moe'", "expected qwen3, llama, mistral, smollm3"]),
    ({"model_type": ...}, ["model_type is None"]),
    ({"model_type": ["qwen3"]}, ["model_type is"]),
    ({"architectures": ["Qwen3ForSequenceClassification"]}, ["architectures", "expected a list with Qwen3ForCausalLM"]),
    ({"architectures": "Qwen3ForCausalLM"}, ["architectures is 'Qwen3ForCausalLM'", "expected a list with"]),
    ({"attention_bias": True}, ["attention_bias is True"]),
    ({**LLAMA, "mlp_bias": True}, ["mlp_bias is True"]),
    ({"use_sliding_window": True, "sliding_window": 32}, ["sliding_window is 32"]),
    ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types is"]),
    ({**MISTRAL, "sliding_window": 32}, ["sliding_window is 32", "expected null"]),
    ({**MISTRAL, "max_position_embeddings": 8192}, ["sliding_window is 4096", "if it is not stated"]),
    ({**SMOL, "no_rope_layers": [1, 0]}, ["no_rope_layers is [1, 0]", "rotary"]),
    ({**SMOL, "no_rope_layer_interval": 2}, ["no_rope_layer_interval is 2"]),
    ({**SMOL, "num_hidden_layers": "2"}, ["num_hidden_layers is '2'"]),
    ({"num_experts": 8}, ["num_experts is 8"]),
    ({"hidden_act": "gelu"}, ["hidden_act is 'gelu'", "silu"]),
    ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5"]),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["rope_parameters.partial_rotary"]),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, ["rope_scaling.rope_type is 'yarn'", "llama3"]),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, ["'dynamic'"]),
    ({"rope_scaling": {"type": "linear"}}, ["rope_scaling.factor is missing"]),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, ["rope_parameters.low_freq_factor is missing"]),
    ({"rope_parameters": {**LLAMA3, "factor": "4"}}, ["rope_scaling.factor is '4'"]),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["differs from layer to layer"]),
    ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, ["rope_theta is 10000.0, but 500000.0"]),
    ({"rope_parameters": [1]}, ["rope_parameters is [1]"]),
    ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config is", "gptq"]),
    ({"pretraining_tp": 2}, ["pretraining_tp is 2"]),
    ({"auto_map": {"AutoModel": "code.Model"}}, ["auto_map is", "code.Model"]),
    ({"num_hidden_layers": ...}, ["num_hidden_layers is missing"]),
    ({"hidden_size": "64"}, ["hidden_size is '64'"]),
    ({"hidden_size": 64.0}, ["hidden_size is 64.0"]),
    ({"num_attention_heads": 0}, ["n_heads is 0"]),
    ({"num_hidden_layers": 10**9}, ["1000000000 layers", "weights of 2"]),
    ({"max_position_embeddings": 10**15}, ["positions", "memory"]),
    ({"hidden_size": 2**62}, ["config.json"]),
    ({"num_key_value_heads": 3}, ["not divisible"]),
    ({"rms_norm_eps": float("inf")}, ["norm_eps is inf", "finite"]),
    ({"rope_theta": 10**400}, ["rope_theta is 1000", "finite"]),
    ({"rms_norm_eps": "small"}, ["norm_eps is 'small'"]),
    ({"tie_word_embeddings": "yes"}, ["tie_embeddings is 'yes'"]),
    ({"tie_word_embeddings": False}, ["the tensor lm_head.weight [320, 64] is missing"]),
    ({"num_hidden_layers": 1}, ["1 layers", "weights of 2"]),
    ({"intermediate_size": 128}, ["down_proj", "[64, 96]", "[64, 128]"]),
    ({**LLAMA}, ["k_norm", "more than config.json describes"]),
    ({"vocab_size": 200}, ["tokenizer.json has 300 entries", "200", "not this model's tokenizer"]),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "base"
    write_folder(folder)
    return folder


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """A folder to spoil; the weights are links."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in base.iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
        else:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def problem(place: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        open_base(str(place))
    (line,) = caught.value.problems
    assert "\n" not in line
    assert len(line) < 600
    return line


@pytest.mark.parametrize(("changes", "words"), PROPERTIES, ids=lambda value: json.dumps(value, default=str)[:60])
def test_a_property_is_refused_by_its_name(changes: dict[str, Any], words: list[str], copy: Path) -> None:
    write_config(copy, **changes)
    line = problem(copy)
    says(line, [f"model.base {copy}", *words])


def spoil_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        change(weights)
        (folder / "model.safetensors").unlink()
        save_file(weights, folder / "model.safetensors")

    return spoil


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def remove(*names: str, then: Callable[[Path], None] = lambda folder: None) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()
        then(folder)

    return spoil


def index(file: str, key: str = "model.norm.weight") -> Callable[[Path], None]:
    return remove(
        "model.safetensors", then=write("model.safetensors.index.json", json.dumps({"weight_map": {key: file}}))
    )


NORM = "model.norm.weight"
FILES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no weights": (remove("model.safetensors"), ["model.safetensors is missing"]),
    "a pickle": (
        remove("model.safetensors", then=write("pytorch_model.bin", b"x")),
        ["pytorch_model.bin is not opened, because it may run code", "save_pretrained"],
    ),
    "shards without an index": (
        remove("model.safetensors", then=write("model-00001-of-00002.safetensors", b"x")),
        ["model.safetensors.index.json is missing"],
    ),
    "a missing shard": (index("model-00002-of-00002.safetensors"), ["the shard model-00002-of-00002", "missing"]),
    "a shard elsewhere": (index("../base/model.safetensors"), ["'../base/model.safetensors'", "no name"]),
    "a shard at an absolute path": (index("/etc/x.safetensors"), ["'/etc/x.safetensors'", "no name"]),
    "an index of numbers": (
        remove("model.safetensors", then=write("model.safetensors.index.json", '{"weight_map": [1]}')),
        ["model.safetensors.index.json has no weight_map"],
    ),
    "a cut file": (
        lambda folder: write("model.safetensors", (folder / "model.safetensors").read_bytes()[:-9])(folder),
        ["model.safetensors is no whole safetensors file"],
    ),
    "no safetensors": (write("model.safetensors", b"\x80\x04 pickle"), ["model.safetensors is no whole"]),
    "a folder of that name": (
        remove("model.safetensors", then=lambda folder: (folder / "model.safetensors").mkdir()),
        ["model.safetensors is missing"],
    ),
    "a missing tensor": (spoil_weights(lambda w: w.__delitem__(NORM)), [f"the tensor {NORM} [64] is missing"]),
    "another tensor": (
        spoil_weights(lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(3)})),
        ["the tensor model.layers.0.self_attn.q_proj.bias [3] is more"],
    ),
    "another shape": (spoil_weights(lambda w: w.update({NORM: torch.zeros(3)})), [f"{NORM} is [3]", "describes [64]"]),
    "a quantized tensor": (
        spoil_weights(lambda w: w.update({NORM: torch.zeros(64, dtype=torch.int8)})),
        [f"{NORM} is I8", "F32, BF16, F16"],
    ),
    "another unembedding of a tied model": (
        spoil_weights(lambda w: w.update({"lm_head.weight": torch.zeros(320, 64)})),
        ["tie_word_embeddings is true", "lm_head.weight"],
    ),
    "no tokenizer": (remove("tokenizer.json"), ["tokenizer.json is missing"]),
    "a sentencepiece file": (
        remove("tokenizer.json", then=write("tokenizer.model", b"x")),
        ["tokenizer.model alone is not read", "AutoTokenizer"],
    ),
    "no tokenizer.json in it": (write("tokenizer.json", "{}"), ["it is no tokenizer.json"]),
    "a larger tokenizer": (lambda folder: write_tokenizer(folder, 330), ["330 entries", "320", "vocab_size"]),
    "another token by tokenizer_config.json": (
        write("tokenizer_config.json", '{"added_tokens_decoder": {"5": {"content": "<x>"}}}'),
        ["tokenizer_config.json has the token '<x>' as id 5"],
    ),
    "a token's id of 5,000 digits": (
        write("tokenizer_config.json", json.dumps({"added_tokens_decoder": {5000 * "9": {"content": "x"}}})),
        ["tokenizer_config.json has the token 'x' as id 999"],
    ),
    "no JSON": (write("config.json", "{"), ["config.json: it is not JSON"]),
    "a list": (write("config.json", "[]"), ["config.json: expected an object"]),
    "no UTF-8": (write("config.json", b"\xff"), ["config.json", "not UTF-8"]),
    "nested": (write("config.json", "[" * 100_000), ["nested too deeply"]),
    "no config": (remove("config.json"), ["config.json is missing"]),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_is_refused_by_its_name(case: str, copy: Path) -> None:
    spoil, words = FILES[case]
    spoil(copy)
    says(problem(copy), [f"model.base {copy}", *words])


def test_a_chat_template_that_is_no_file_is_refused(copy: Path) -> None:
    template = copy / "chat_template.jinja"
    template.symlink_to("/dev/null")
    says(problem(copy), [f"chat template {template}", "give a regular file"])
    template.unlink()
    template.symlink_to("nowhere")
    says(problem(copy), [f"chat template {template}", "No such file"])
    template.unlink()
    template.mkdir()
    says(problem(copy), [f"chat template {template}", "give a regular file"])


def test_places(copy: Path, tmp_path: Path) -> None:
    says(problem(tmp_path / "nothing"), ["there is no such file or folder"])
    says(problem(""), ["model.base is empty"])
    says(problem("s3://bucket/model"), ["expected a folder"])
    says(problem("hf://one"), ["expected hf://owner/name"])
    says(problem("hf://a/b?branch=x"), ["expected hf://owner/name"])
    says(problem(copy / "model.safetensors"), ["give its folder"])
    for name, content, words in (
        ("model.gguf", b"GGUF123", ["GGUF", "gguf_file"]),
        ("pytorch_model.bin", b"x", ["a .bin file may run code"]),
        ("x.ckpt", b"x", ["not a whole checkpoint"]),
    ):
        (tmp_path / name).write_bytes(content)
        says(problem(tmp_path / name), words)


FIT = ["fit", "--data.corpus", "text.txt", "--data.seq_len", "32", "--trainer.max_steps", "1", "--model.base"]
KEYS: list[tuple[list[str], list[str]]] = [
    (["--model.d_model", "128"], ["model.d_model is 128", "is 64", "leave it out"]),
    (["--model.tie_embeddings", "false"], ["model.tie_embeddings is False", "is True"]),
    (["--model.head_dim", "16"], ["model.head_dim is 16", "is 32"]),
    (["--model.norm_eps", "1e-5"], ["model.norm_eps is 1e-05"]),
    (["--model.max_seq_len", "128"], ["model.max_seq_len is 128", "knows 64", "model.rope_scaling"]),
    (["--model.rope_scaling", '{"rope_type": "linear", "factor": 2}'], ["model.rope_scaling is", "above its 64"]),
    (["--data.tokenizer", "bpe"], ["data.tokenizer is bpe", "leave it out"]),
    (["--data.vocab_size", "8192"], ["data.vocab_size is 8192", "has 300 entries: leave it out"]),
    (["--data.bpe_sample_bytes", "9"], ["data.bpe_sample_bytes is 9", "is not trained again: leave it out"]),
    (["--data.seq_len", "65"], ["data.seq_len 65 is longer than model.max_seq_len 64"]),
]


@pytest.mark.parametrize(("flags", "words"), KEYS, ids=lambda value: value[0])
def test_a_key_that_contradicts_the_base_is_refused(
    flags: list[str], words: list[str], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    says(refused([*FIT, str(base), *flags], capsys), words)
    assert not Path("checkpoints").exists()


def test_each_key_of_a_file_is_named_with_its_line(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model:\n  d_model: 128\n  n_heads: 4\n  n_layers: 3\n")
    lines = lines_of([*FIT, str(base), "--config", "mine.yaml"], capsys)
    says(lines[0], ["mine.yaml:2: model.d_model"])
    says(lines[1], ["mine.yaml:4: model.n_layers"])
    assert len(lines) == 2
    # A key that a flag gave is in no file, whatever section of it one has.
    alone = refused(["fit", "--config", "mine.yaml", "--model.adapter.rank", "3"], capsys)
    assert alone.startswith("model.adapter is trained beside")
    assert refused(["fit", "--model.adapter.alpha", "inf"], capsys).endswith("or null, got inf")
    says(refused([*FIT[:-1], "--data.tokenizer", "base"], capsys), ["data.tokenizer base", "model.base"])
    says(refused(["prepare", "--data.tokenizer", "base"], capsys), ["data.tokenizer base", "tokenizer.json"])


def test_whatever_a_json_file_says_it_is_opened_or_refused_in_one_line(copy: Path) -> None:
    """Each key of config.json, tokenizer_config.json and the index, with each kind of value that JSON has."""
    odd = [
        None,
        True,
        False,
        -1,
        0,
        1,
        3,
        1.5,
        1e300,
        2**70,
        "",
        "x",
        [],
        [1],
        ["x"],
        [[]],
        {},
        {"a": 1},
        {"type": "x"},
    ]
    odd += [{"rope_type": "linear", "factor": value} for value in (None, 0, "x", [], 1e300)]
    odd += [{"rope_type": [], "rope_theta": {}}, {"rope_theta": "x"}, {"0": {"content": 3}}, {"-1": None}]
    more = ("rope_scaling", "rope_parameters", "rope_theta", "sliding_window", "use_sliding_window", "layer_types")
    more += ("no_rope_layers", "no_rope_layer_interval", "hidden_act", "num_experts", "auto_map")
    original = json.loads((copy / "config.json").read_text())
    for kind in ("qwen3", "smollm3", "mistral"):
        names = {"qwen3": "Qwen3", "smollm3": "SmolLM3", "mistral": "Mistral"}
        content = {**original, "model_type": kind, "architectures": [f"{names[kind]}ForCausalLM"]}
        for key in [*content, *more] if kind == "qwen3" else more[3:8]:
            for value in odd:
                (copy / "config.json").write_text(json.dumps({**content, key: value}))
                opens_or_refuses(copy)
    write_config(copy, **original)
    for value in odd:
        for key in ("chat_template", "added_tokens_decoder", "eos_token"):
            (copy / "tokenizer_config.json").write_text(json.dumps({key: value}))
            opens_or_refuses(copy)
    (copy / "tokenizer_config.json").write_text("{}")
    (copy / "model.safetensors").rename(copy / "part.safetensors")
    for table in [*odd, *({"model.norm.weight": value} for value in odd), {"": "part.safetensors"}]:
        (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
        opens_or_refuses(copy)


def opens_or_refuses(folder: Path) -> None:
    problems: tuple[str, ...] = ()
    try:
        open_base(str(folder))
    except UserError as error:
        problems = error.problems
    assert all("\n" not in line and len(line) < 700 for line in problems)
