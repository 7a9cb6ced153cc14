"""ONNX for onnxruntime alone: its fused attention rotates, caches and attends in one node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinytf.export import onnx_int8, onnx_reading
from tinytf.export.onnx_files import (
    PAST,
    PRESENT,
    cache_names,
    check,
    open_session,
    refusal,
    runtime_name,
    save,
    stated_config,
)
from tinytf.export.onnx_graph import Array
from tinytf.export.packed import PackedAttention, PackedBlock, blocks_of
from tinytf.export.runner import Feed, Runner
from tinytf.export.subject import Subject
from tinytf.model import Transformer

MICROSOFT = "com.microsoft"
LENGTHS, TOTAL = "seqlens_k", "total_sequence_length"
OPSET = 18
HEAD_MULTIPLE = 16


@dataclass(frozen=True)
class Fused:
    """The float32 graph, or its weights in 8 bits."""

    quantized: bool

    def write(self, subject: Subject, path: Path, base: Path | None) -> None:
        """Build the graph of fused operators, or quantise the one at ``base``."""
        if self.quantized:
            onnx_int8.write(subject, path, base)
            return
        save(Builder(subject.model).build(), path, subject.model.config)
        check(path)

    def open_runner(self, path: Path, threads: int) -> Runner:
        """The graph in onnxruntime, with its cache."""
        return fused_runner(open_session(path, threads))

    def problems(self, subject: Subject, text: str, path: Path) -> list[str]:
        """Which of its weights are not the model's, where they were rounded."""
        return onnx_reading.weight_problems(subject, path) if self.quantized else []

    def open_unrounded(self, subject: Subject, path: Path, threads: int) -> Runner | None:
        """The graph with the model's own weights, where it holds rounded ones."""
        if not self.quantized:
            return None
        return fused_runner(open_session(onnx_reading.unrounded(subject, path), threads))

    def refusal(self, subject: Subject) -> str | None:
        """Why the fused attention does not take the model, or one ONNX file does not hold it; or None."""
        size = subject.model.config.head_dim
        if size % HEAD_MULTIPLE:
            return f"its rotation takes heads of a multiple of {HEAD_MULTIPLE} values, and a head has {size}"
        return refusal(subject)


F32 = Fused(quantized=False)
INT8 = Fused(quantized=True)


class Builder:
    """Writes the graph down node by node; it is the same for every model but for sizes and weights."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.config = model, model.config
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def build(self) -> Any:
        """The model as onnx.ModelProto."""
        from onnx import helper

        graph = helper.make_graph(self._body(), "tinytf", self._inputs(), self._outputs(), self.weights)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="tinytf")

    def _body(self) -> list[Any]:
        config = self.config
        embedding = self._weight("embed_tokens.weight", self.model.embed_tokens.weight)
        half = config.head_dim // 2
        self._weight("cos", self.model.cos[:, :half])
        self._weight("sin", self.model.sin[:, :half])
        x = self._node("Gather", embedding, "tokens", out="embedding")
        blocks = [PackedBlock(block, config.n_heads, config.kv_heads) for block in blocks_of(self.model)]
        following = [block.attention_norm.weight for block in blocks[1:]] + [self.model.norm.weight]
        y = self._norm("first_norm", x, blocks[0].attention_norm.weight)
        for layer, (block, gain) in enumerate(zip(blocks, following, strict=True)):
            x, y = self._block(layer, block, x, y, gain)
        head = self._node("Transpose", embedding, out="head", perm=[1, 0])
        self._node("MatMul", y, head, out="logits")
        return self.nodes

    def _norm(self, name: str, x: str, weight: Tensor) -> str:
        """A RMSNorm in standard operators, which onnxruntime fuses as it loads; the one with a skip has a node."""
        square = self._node("Pow", x, self._shared("two", 2.0), out=f"{name}.square")
        mean = self._node("ReduceMean", square, self._shared("last", [-1]), out=f"{name}.mean", keepdims=1)
        total = self._node("Add", mean, self._shared("eps", self.config.norm_eps), out=f"{name}.sum")
        root = self._node("Sqrt", total, out=f"{name}.root")
        scaled = self._node("Div", x, root, out=f"{name}.scaled")
        return self._node("Mul", scaled, self._weight(f"{name}.weight", weight), out=name)

    def _block(self, layer: int, block: PackedBlock, x: str, y: str, following: Tensor) -> tuple[str, str]:
        """``x`` is the residual stream, ``y`` its norm, which the block reads; returns both for what follows."""
        name = f"layers.{layer}"
        attended = self._attention(layer, block.attention, y)
        x, y = self._skip_norm(f"{name}.mlp_norm", attended, x, block.mlp_norm.weight)
        both = self._node("MatMul", y, self._weight(f"{name}.gate_up", block.gate_up), out=f"{name}.both")
        gate, up = f"{name}.gate", f"{name}.up"
        self._nodes("Split", [both], [gate, up], axis=-1, num_outputs=2)
        silu = self._node("QuickGelu", gate, out=f"{name}.silu", domain=MICROSOFT, alpha=1.0)
        hidden = self._node("Mul", silu, up, out=f"{name}.hidden")
        down = self._node("MatMul", hidden, self._weight(f"{name}.down", block.down), out=f"{name}.mlp")
        return self._skip_norm(f"{name}.next_norm", down, x, following)

    def _attention(self, layer: int, attention: PackedAttention, y: str) -> str:
        name = f"layers.{layer}.attention"
        qkv = self._node("MatMul", y, self._weight(f"{name}.qkv", attention.qkv), out=f"{name}.packed")
        past, present = ([f"{kind}.{layer}.{half}" for half in ("key", "value")] for kind in (PAST, PRESENT))
        self._nodes(
            "GroupQueryAttention",
            [*self._query_key_value(name, attention, qkv), *past, LENGTHS, TOTAL, "cos", "sin"],
            [f"{name}.weighted", *present],
            domain=MICROSOFT,
            num_heads=attention.heads,
            kv_num_heads=attention.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
            scale=1.0,
        )
        return self._node("MatMul", f"{name}.weighted", self._weight(f"{name}.o", attention.o), out=f"{name}.out")

    def _query_key_value(self, name: str, attention: PackedAttention, qkv: str) -> list[str]:
        """Packed as they are; apart where queries and keys are normed, which the fused node does only on GPUs."""
        if attention.norm is None:
            return [qkv, "", ""]
        sizes = [heads * attention.head_dim for heads in (attention.heads, attention.kv_heads, attention.kv_heads)]
        apart = [f"{name}.{part}" for part in ("q", "k", "v")]
        self._nodes("Split", [qkv, self._shared("qkv_sizes", sizes)], apart, axis=-1)
        q = self._head_norm(apart[0], attention.heads, attention.q_gain)
        k = self._head_norm(apart[1], attention.kv_heads, attention.k_gain)
        return [q, k, apart[2]]

    def _head_norm(self, x: str, heads: int, gain: Tensor) -> str:
        size = self.config.head_dim
        # In a Reshape, 0 keeps a size.
        rows = self._node("Reshape", x, self._shared(f"by_{heads}", [0, 0, heads, size]), out=f"{x}.heads")
        normed = self._norm(f"{x}.norm", rows, gain)
        return self._node("Reshape", normed, self._shared(f"from_{heads}", [0, 0, heads * size]), out=f"{x}.normed")

    def _skip_norm(self, name: str, x: str, skip: str, weight: Tensor) -> tuple[str, str]:
        """The sum of both, and its RMSNorm."""
        inputs = [x, skip, self._weight(f"{name}.weight", weight)]
        outputs = [name, "", "", f"{name}.sum"]
        self._nodes("SkipSimplifiedLayerNormalization", inputs, outputs, domain=MICROSOFT, epsilon=self.config.norm_eps)
        return f"{name}.sum", name

    def _node(self, op_type: str, *inputs: str, out: str, **attributes: Any) -> str:
        self._nodes(op_type, list(inputs), [out], **attributes)
        return out

    def _nodes(self, op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(op_type, inputs, outputs, **attributes))

    def _weight(self, name: str, value: Tensor) -> str:
        from onnx import numpy_helper

        array: Array = value.detach().contiguous().numpy()
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def _shared(self, name: str, value: Any) -> str:
        """A constant that several nodes use."""
        return name if any(tensor.name == name for tensor in self.weights) else self._weight(name, torch.tensor(value))

    def _inputs(self) -> list[Any]:
        from onnx import TensorProto, helper

        config = self.config
        sizes = ["batch", config.kv_heads, "past_len", config.head_dim]
        pasts = cache_names(PAST, config.n_layers)
        return [
            helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "seq"]),
            helper.make_tensor_value_info(LENGTHS, TensorProto.INT32, ["batch"]),
            helper.make_tensor_value_info(TOTAL, TensorProto.INT32, [1]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in pasts),
        ]

    def _outputs(self) -> list[Any]:
        from onnx import TensorProto, helper

        config = self.config
        sizes = ["batch", config.kv_heads, "total_len", config.head_dim]
        logits = ["batch", "seq", config.vocab_size]
        presents = cache_names(PRESENT, config.n_layers)
        return [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in presents),
        ]


def fused_runner(session: Any) -> Runner:
    """Keys and values stay in one buffer of the whole context, which the graph writes in place."""
    import onnxruntime

    config = stated_config(session)
    assert config is not None, "fused graphs are written with their shape"

    def start(batch_size: int) -> Feed:
        sizes = (batch_size, config.kv_heads, config.max_seq_len, config.head_dim)
        binding = session.io_binding()
        for past, present in zip(
            cache_names(PAST, config.n_layers), cache_names(PRESENT, config.n_layers), strict=True
        ):
            buffer = onnxruntime.OrtValue.ortvalue_from_numpy(torch.zeros(sizes).numpy())
            binding.bind_ortvalue_input(past, buffer)
            binding.bind_ortvalue_output(present, buffer)
        length = 0

        def feed(tokens: Tensor) -> Tensor:
            nonlocal length
            logits = []
            for part in _parts(tokens, length):
                length += part.shape[1]
                binding.bind_cpu_input("tokens", part.contiguous().numpy())
                binding.bind_cpu_input(LENGTHS, torch.full((batch_size,), length - 1, dtype=torch.int32).numpy())
                binding.bind_cpu_input(TOTAL, torch.tensor([length], dtype=torch.int32).numpy())
                binding.bind_output("logits")
                session.run_with_iobinding(binding)
                logits.append(torch.from_numpy(binding.get_outputs()[-1].numpy()))
            return torch.cat(logits, dim=1)

        return feed

    return Runner(runtime_name(), start)


def _parts(tokens: Tensor, past: int) -> Iterator[Tensor]:
    """What the fused attention takes at once: several tokens after others only for a batch of one."""
    single = past > 0 and len(tokens) > 1
    yield from torch.split(tokens, 1 if single else tokens.shape[1], dim=1)
