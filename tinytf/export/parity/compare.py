"""Compare an artifact, running in its own runtime, with the model in float32."""

from __future__ import annotations

import math
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
    id of the vocabulary as an input, and, for a runtime with a cache, prefill and decode in chunks. Call it within
    `reference_precision`.
    """
    with torch.inference_mode():
        text = _on_held_out(runner, reference)
        greedy, greedy_tokens, farthest = _greedy(runner, reference)
        cases = list(_other_cases(runner, reference))
        for case in cases:
            farthest = _larger(farthest, _distance(runner, reference, case))
        farthest = _larger(farthest, text.max_abs)
    return ParityMetrics(
        max_abs=farthest,
        relative=farthest / text.std,
        top1=text.agreed / text.tokens,
        kl=text.kl / text.tokens,
        kl_max=text.kl_max,
        loss=text.loss / text.tokens,
        reference_loss=text.reference_loss / text.tokens,
        tokens=text.tokens,
        greedy=greedy,
        greedy_tokens=greedy_tokens,
        cases=len(cases) + 1 + -(-len(reference.evaluation.windows) // 2),
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


def _larger(a: float, b: float) -> float:
    # max() keeps its first where the other is NaN.
    return a if a > b or math.isnan(a) else b


@dataclass
class _Sums:
    """Sums over held-out positions, and over all their logits for the standard deviation."""

    max_abs: float = 0.0
    agreed: int = 0
    kl: float = 0.0
    kl_max: float = 0.0
    loss: float = 0.0
    reference_loss: float = 0.0
    tokens: int = 0
    logits: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        variance = self.squares / self.logits - (self.total / self.logits) ** 2
        return math.sqrt(max(variance, 1e-30))


def _on_held_out(runner: Runner, reference: ReferenceLogits) -> _Sums:
    sums = _Sums()
    for case, targets in held_out(reference.evaluation):
        wanted = reference.logits(case.tokens)
        logits = _logits(runner, case, wanted)
        sums.max_abs = _larger(sums.max_abs, _max_abs(logits, wanted))
        # A window at a time: float64 over a large vocabulary fills memory.
        for row in range(len(targets)):
            _add(sums, logits[row].double(), wanted[row].double(), targets[row])
    return sums


def _add(sums: _Sums, logits: Tensor, wanted: Tensor, targets: Tensor) -> None:
    p, q = F.log_softmax(wanted, dim=-1), F.log_softmax(logits, dim=-1)
    kl = (p.exp() * (p - q)).sum(-1)
    sums.kl += float(kl.sum())
    sums.kl_max = _larger(sums.kl_max, float(kl.max()))
    sums.loss += float(F.nll_loss(q, targets, reduction="sum"))
    sums.reference_loss += float(F.nll_loss(p, targets, reduction="sum"))
    sums.agreed += int(_agrees(logits, wanted).sum())
    sums.tokens += len(targets)
    sums.logits += wanted.numel()
    sums.total += float(wanted.sum())
    sums.squares += float(wanted.square().sum())


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
    if new == 0:
        return 1.0, 0, 0.0
    inputs = tokens[:, :-1]
    wanted = reference.logits(inputs)
    logits = _logits(runner, Case(inputs, (prompt, *[1] * (new - 1)) if runner.cached else None), wanted)
    agrees = _agrees(logits[:, prompt - 1 :], wanted[:, prompt - 1 :])
    return float(agrees.double().mean()), new, _max_abs(logits, wanted)
