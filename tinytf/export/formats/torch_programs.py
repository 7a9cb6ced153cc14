"""Files that run with torch alone: a torch.export program, and TorchScript, which PyTorch is retiring.

Opening either can run code that is in it, so `verify` asks for ``--trust``: TorchScript is a program, and torch
unpickles parts of a ``.pt2`` without limits.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

from tinytf.export.formats import Writer
from tinytf.export.parity.cases import example_tokens, too_short_to_trace
from tinytf.export.parity.runner import Runner, quiet, recomputing
from tinytf.weights.checkpoint import LoadedModel

MAX_BATCH = 4096
"""torch.export asks for a bound; what is larger is refused by the program itself."""


class Traced(Writer):
    """What both share: a trace of the model, run without a cache."""

    def unsupported_reason(self, loaded: LoadedModel) -> str | None:
        return too_short_to_trace(loaded.model.config)

    def runner(self, name: str, module: Callable[[Tensor], Tensor]) -> Runner:
        """Ids ``[batch, seq]`` to logits ``[batch, seq, vocab_size]``, the whole sequence for each token."""

        def forward(tokens: Tensor) -> Tensor:
            with torch.inference_mode():
                return module(tokens)

        return Runner(f"{name} {torch.__version__}", recomputing(forward), cached=False)


class TorchScript(Traced):
    """``torch.jit.trace``: one file for Python and C++."""

    def write(self, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        with quiet(), torch.no_grad():
            # Parity compares it with the model on far more than the example that check_trace would run again.
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                loaded.model, example_tokens(), check_trace=False
            )
            torch.jit.save(traced, str(path))

    def open_runner(self, path: Path, threads: int) -> Runner:
        with quiet():
            return self.runner("torch.jit", torch.jit.load(str(path), map_location="cpu"))  # type: ignore[no-untyped-call]


class Pt2(Traced):
    """``torch.export``: a program for any batch and any length up to the context."""

    def write(self, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        sizes = {0: Dim("batch", max=MAX_BATCH), 1: Dim("seq", max=loaded.model.config.max_seq_len)}
        with quiet(), torch.no_grad():
            program = torch.export.export(loaded.model, (example_tokens(),), dynamic_shapes={"tokens": sizes})
            torch.export.save(program, str(path))

    def open_runner(self, path: Path, threads: int) -> Runner:
        with quiet():
            return self.runner("torch.export", torch.export.load(str(path)).module())


TORCHSCRIPT = TorchScript()
PT2 = Pt2()
