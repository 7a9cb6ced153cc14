"""Compare an artifact, running in its own runtime, with the model in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tinytf.export.parity.cases import Case, Evaluation, chunked, held_out, shapes, vocabulary
from tinytf.export.parity.runner import Runner, eager
from tinytf.model import Transformer

TIE = 2e-4
"""If the model's two largest logits are nearer than this, twice what an fp32 artifact may differ by, their order
says nothing, and neither choice is counted as wrong."""

PROMPT, GREEDY = 16, 200
CACHED_BYTES = 1 << 29


@dataclass(frozen=True)
class ParityMetrics:
    """The distance of one artifact from its model.

    ``max_abs`` is the largest difference of two logits over every case; ``relative`` the same over the standard
    deviation of the model's logits on held-out text. ``top1``, ``kl`` (nats, in float64), ``loss`` and
    ``reference_loss`` (nats per token) are means over the ``tokens`` held-out positions, ``kl_max`` the worst of them.
    ``greedy`` is the share of ``greedy_tokens`` that are the model's own greedy choice.
    """

    max_abs: float
    relative: float
    top1: float
    kl: float
    kl_max: float
    loss: float
    reference_loss: float
    tokens: int
    greedy: float
    greedy_tokens: int
    cases: int


class ReferenceLogits:
    """The model's logits, each case computed once as long as memory allows.

    Args:
        model: in float32 and eval mode.
        evaluation: the held-out text.
    """

    def __init__(self, model: Transformer, evaluation: Evaluation) -> None:
        self.model = model
        self.evaluation = evaluation
        self._cache: dict[tuple[torch.Size, bytes], Tensor] = {}
        self._cache_room = CACHED_BYTES

    def logits(self, tokens: Tensor) -> Tensor:
        """The model's logits ``[batch, seq, vocab_size]`` of ids ``[batch, seq]``; cached as far as memory allows."""
        key = (tokens.shape, tokens.numpy().tobytes())
        if key in self._cache:
            return self._cache[key]
        with torch.inference_mode():
            logits: Tensor = self.model(tokens)
        size = logits.numel() * logits.element_size()
        if size <= self._cache_room:
            self._cache_room -= size
            self._cache[key] = logits
        return logits

    def greedy(self) -> Tensor:
        """A held-out prompt and the model's own continuation, ``[1, seq]``, up to 200 tokens or the context."""
        limit = self.model.config.max_seq_len
        prompt = self.evaluation.passage(0, min(PROMPT, max(1, limit // 2)))[None]
        feed, tokens, new = eager(self.model).start(1), prompt, prompt
        while tokens.shape[1] < min(limit, prompt.shape[1] + GREEDY):
            new = feed(new)[:, -1:].argmax(-1)
            tokens = torch.cat((tokens, new), dim=1)
        return tokens


def compare(runner: Runner, reference: ReferenceLogits) -> ParityMetrics:
    """Run an artifact over every case and measure its distance from the model.

    The cases are held-out windows of the full context, batches of 1 to 8 sequences of 1 to max_seq_len tokens, every
    id of the vocabulary as an input (8,192 of a larger one), and, for a runtime with a cache, prefill and decode in
    chunks. Call it within `reference_precision`.
    """
    with torch.inference_mode():
        text = _on_held_out(runner, reference)
        greedy, greedy_tokens, farthest = _greedy(runner, reference)
        others = [farthest, *(_distance(runner, reference, case) for case in _other_cases(runner, reference))]
    # Not max(): it keeps its first if the other is NaN.
    max_abs = float(torch.tensor([text.max_abs, *others]).max())
    return ParityMetrics(
        max_abs=max_abs,
        relative=max_abs / text.std,
        top1=float(text.agreed.double().mean()),
        kl=float(text.kl.mean()),
        kl_max=float(text.kl.max()),
        loss=float(text.loss.mean()),
        reference_loss=float(text.reference_loss.mean()),
        tokens=len(text.loss),
        greedy=greedy,
        greedy_tokens=greedy_tokens,
        cases=len(others) + sum(1 for _ in held_out(reference.evaluation)),
    )


def _other_cases(runner: Runner, reference: ReferenceLogits) -> Iterator[Case]:
    config = reference.model.config
    yield from shapes(reference.evaluation, config.max_seq_len)
    yield from vocabulary(config.vocab_size, config.max_seq_len)
    if runner.cached:
        yield from chunked(reference.evaluation, config.max_seq_len)


def _distance(runner: Runner, reference: ReferenceLogits, case: Case) -> float:
    wanted = reference.logits(case.tokens)
    return _max_abs(_logits(runner, case, wanted), wanted)


def _logits(runner: Runner, case: Case, wanted: Tensor) -> Tensor:
    logits = runner.logits(case.tokens, case.chunks)
    if logits.shape != wanted.shape:
        raise RuntimeError(f"{runner.runtime} gave logits of shape {[*logits.shape]} for {[*wanted.shape]}")
    return logits


def _max_abs(logits: Tensor, wanted: Tensor) -> float:
    return float((logits - wanted).abs().max())


@dataclass(frozen=True)
class _HeldOut:
    """Per held-out position, float64 ``[tokens]``; the last two are over all logits."""

    kl: Tensor
    loss: Tensor
    reference_loss: Tensor
    agreed: Tensor
    max_abs: float
    std: float


def _on_held_out(runner: Runner, reference: ReferenceLogits) -> _HeldOut:
    columns: list[tuple[Tensor, ...]] = []
    distances = []
    moments = torch.zeros(3, dtype=torch.float64)
    for case, targets in held_out(reference.evaluation):
        wanted = reference.logits(case.tokens)
        logits = _logits(runner, case, wanted)
        distances.append(_max_abs(logits, wanted))
        # A window at a time: the float64 of several, with softmax's temporaries, fills memory at large vocabularies.
        for row, wanted_row, target in zip(logits, wanted, targets, strict=True):
            wanted_row = wanted_row.double()
            columns.append(_position_columns(row.double(), wanted_row, target))
            moments += torch.stack([wanted_row.pow(power).sum() for power in range(3)])
    count, total, squares = moments.tolist()
    variance = squares / count - (total / count) ** 2
    max_abs = float(torch.tensor(distances).max())
    kl, loss, reference_loss, agreed = (torch.cat(column) for column in zip(*columns, strict=True))
    return _HeldOut(kl, loss, reference_loss, agreed, max_abs, std=max(variance, 1e-30) ** 0.5)


def _position_columns(logits: Tensor, wanted: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    p, q = F.log_softmax(wanted, dim=-1), F.log_softmax(logits, dim=-1)
    losses = (F.nll_loss(log, targets, reduction="none") for log in (q, p))
    return ((p.exp() * (p - q)).sum(-1), *losses, _agrees(logits, wanted))


def _agrees(logits: Tensor, wanted: Tensor) -> Tensor:
    """Where the largest logit is the model's own, or is within a tie of it by the model's own logits."""
    chosen = wanted.gather(-1, logits.argmax(-1, keepdim=True)).squeeze(-1)
    return chosen >= wanted.amax(-1) - TIE


def _greedy(runner: Runner, reference: ReferenceLogits) -> tuple[float, int, float]:
    """Share of the model's greedy continuation that the artifact chooses too, fed token by token if it has a cache.

    It is fed the model's own choices: if every one agrees, so does the text it would write alone.
    """
    tokens = reference.greedy()
    prompt = min(PROMPT, max(1, reference.model.config.max_seq_len // 2))
    new = tokens.shape[1] - prompt
    if new == 0:  # A context of one token.
        return 1.0, 0, 0.0
    inputs = tokens[:, :-1]
    wanted = reference.logits(inputs)
    logits = _logits(runner, Case(inputs, (prompt, *[1] * (new - 1)) if runner.cached else None), wanted)
    agrees = _agrees(logits[:, prompt - 1 :], wanted[:, prompt - 1 :])
    return float(agrees.double().mean()), new, _max_abs(logits, wanted)
