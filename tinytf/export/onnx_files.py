"""What all ONNX formats share: writing a graph, reading its metadata, running it in onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tinytf.export.quiet import quiet
from tinytf.export.runner import Feed, Runner
from tinytf.export.subject import Subject
from tinytf.model import TransformerConfig

OPSET = 18
"""The oldest that every operator here needs, so that old runtimes take the file too."""

PAST, PRESENT = "past_key_values", "present"
METADATA = "tinytf"
PROTOBUF_LIMIT = 2**31


def refusal(subject: Subject, extra: int = 0) -> str | None:
    """Why the model, and so many values more, do not fit into one ONNX file, or None."""
    size = 4 * (subject.model.config.parameter_count + extra)
    if size < 0.95 * PROTOBUF_LIMIT:
        return None
    return f"its {size / 1e9:.1f} GB of float32 weights are past the 2 GB that one ONNX file holds"


def write_graph(
    subject: Subject,
    path: Path,
    graph: nn.Module,
    example: tuple[Any, ...],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Mapping[str, Any],
) -> None:
    """Export with torch.export, into one checked file that states the model's shape in its metadata."""
    with quiet():
        program = torch.onnx.export(
            graph.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dict(dynamic_shapes),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    save(program.model_proto, path, subject.model.config)
    check(path)


def save(proto: Any, path: Path, config: TransformerConfig) -> None:
    """Write a model with the transformer's shape in its metadata, and without the exporter's notes."""
    import onnx

    # The notes are half of a small file, and tell the paths of the machine that wrote it.
    del proto.graph.metadata_props[:]
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del part.metadata_props[:]
    del proto.graph.value_info[:]
    onnx.helper.set_model_props(proto, {METADATA: json.dumps(asdict(config))})
    onnx.save(proto, str(path))


def check(path: Path) -> None:
    """onnx's own checker, with shape inference."""
    import onnx

    onnx.checker.check_model(str(path), full_check=True)


def load(path: Path) -> Any:
    """The graph of a file, with its weights."""
    import onnx

    return onnx.load(str(path))


def runtime_name() -> str:
    """Name and version, for the report."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def open_session(graph: Path | bytes, threads: int) -> Any:
    """An onnxruntime session on the CPU, of a file or its content, that says nothing below an error."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        graph if isinstance(graph, bytes) else str(graph), options, providers=["CPUExecutionProvider"]
    )


def stated_config(session: Any) -> TransformerConfig | None:
    """The model's shape as the file states it, or None where it was not written here."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    return None if text is None else TransformerConfig(**json.loads(text))


def open_cached(path: Path, threads: int) -> Runner:
    """A graph with past and present key-values."""
    return cached_runner(open_session(path, threads))


def cached_runner(session: Any) -> Runner:
    """A session whose keys and values go back in at each step."""
    past_inputs = [node for node in session.get_inputs() if node.name.startswith(PAST)]
    outputs = [node.name for node in session.get_outputs()]

    def start(batch_size: int) -> Feed:
        past = {node.name: torch.zeros(batch_size, node.shape[1], 0, node.shape[3]).numpy() for node in past_inputs}

        def feed(tokens: Tensor) -> Tensor:
            logits, *present = session.run(outputs, {"tokens": tokens.numpy(), **past})
            past.update(zip(past, present, strict=True))
            return torch.from_numpy(logits)

        return feed

    return Runner(runtime_name(), start)


def cache_names(prefix: str, layers: int) -> list[str]:
    """Names of the key-value inputs or outputs, as transformers and onnxruntime-genai call them."""
    return [f"{prefix}.{layer}.{half}" for layer in range(layers) for half in ("key", "value")]
