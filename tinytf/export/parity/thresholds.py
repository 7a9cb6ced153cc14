"""How far an artifact may be from its model: the one table."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tinytf.errors import UserError

if TYPE_CHECKING:
    from tinytf.export.parity.compare import ParityMetrics

Limits = dict[str, float]

THRESHOLDS: dict[str, Limits] = {
    # TorchScript runs the very kernels of the reference.
    "exact": {"max_abs": 1e-5, "relative": 1e-5, "top1": 1.0, "greedy": 1.0},
    # Other kernels sum in another order: 1e-5 to 6e-5 was seen; the smallest planted bug moved a logit by 4e-4.
    "fp32": {"max_abs": 1e-4, "relative": 1e-4, "top1": 1.0, "greedy": 1.0},
    # llama.cpp rotates by angles that it multiplies up from pair to pair, off by 1.5e-5 at position 255: logits moved
    # by 1.0e-4, and by 1.1e-5 from a model with the same angles. Tensors and config are compared exactly as well.
    "llamacpp": {"max_abs": 1e-3, "relative": 3e-4, "kl": 1e-9, "top1": 0.999, "greedy": 0.99},
    "fp16": {"relative": 1e-2, "kl": 1e-5, "top1": 0.995, "loss": 1e-3},
    # Quantization spreads thin over all logits; a lost row or layer moves single logits by several standard deviations,
    # and `relative`, which looks at every row of the vocabulary, is there to catch it. A zeroed row of a trained
    # model's embedding moved them by 3.4, quantizing to 4 bits by up to 2.9.
    "int8": {"relative": 1.0, "kl": 5e-4, "top1": 0.98, "loss": 1e-2},
    "int4": {"relative": 3.0, "kl": 1e-2, "top1": 0.93, "loss": 2e-2},
}
"""Row: a format's precision. ``top1`` and ``greedy`` are the least share that must agree; the others are the most
that passes: ``max_abs`` (logits), ``relative`` (the same over the logits' standard deviation), ``kl`` (nats per
token), ``loss`` (nats per token, either way)."""

AT_LEAST = ("top1", "greedy")


def breaches(metrics: ParityMetrics, limits: Limits) -> list[str]:
    """What went past its threshold, each in words; NaN is past every threshold."""
    value = {
        "max_abs": metrics.max_abs,
        "relative": metrics.relative,
        "top1": metrics.top1,
        "greedy": metrics.greedy,
        "kl": metrics.kl,
        "loss": abs(metrics.loss - metrics.reference_loss),
    }
    low = [f"{name} {value[name]:.4f} is under {limits[name]:g}" for name in AT_LEAST if _fails(name, value, limits)]
    high = [
        f"{name} {value[name]:.2e} is over {limits[name]:g}"
        for name in limits
        if name not in AT_LEAST and _fails(name, value, limits)
    ]
    return high + low


def _fails(name: str, value: dict[str, float], limits: Limits) -> bool:
    if name not in limits:
        return False
    return not (value[name] >= limits[name] if name in AT_LEAST else value[name] <= limits[name])


def with_overrides(settings: Sequence[str], table: Mapping[str, Limits] = THRESHOLDS) -> dict[str, Limits]:
    """A table with settings such as ``int8.kl=1e-3`` in place.

    Raises:
        UserError: if a name is not in the table, or no artifact, or every one, could pass a value.
    """
    table = {precision: dict(limits) for precision, limits in table.items()}
    known = [f"{precision}.{name}" for precision, limits in table.items() for name in limits]
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"--threshold {setting}: no threshold {name!r}; {hint}There are {', '.join(known)}")
        precision, _, limit = name.partition(".")
        table[precision][limit] = _limit(setting, limit, text)
    return table


def _limit(setting: str, name: str, text: str) -> float:
    largest = 1.0 if name in AT_LEAST else math.inf
    try:
        # float() reads 1_000 and digits of other scripts, too.
        number = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and 0.0 <= number <= largest):
        expected = "a share from 0 to 1" if name in AT_LEAST else "a finite number from 0 up"
        raise UserError(
            f"--threshold {setting}: {text!r} is not {expected}; write it as name=value, such as int8.kl=1e-3"
        )
    return number
