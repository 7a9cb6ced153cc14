"""The parity check of one artifact: it loads, it is measured, it keeps to its thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from tinytf.data.tokenizer import end_of_text_id
from tinytf.export.formats import Format
from tinytf.export.parity.cases import Evaluation
from tinytf.export.parity.compare import ParityMetrics, ReferenceLogits, compare
from tinytf.export.parity.runner import Runner, Speed, eager, measure, quiet, reference_precision
from tinytf.export.parity.thresholds import Limits, breaches
from tinytf.weights.checkpoint import LoadedModel

PASSED, FAILED, NOT_VERIFIED = "passed", "failed", "not verified"
SPEED_PASSAGE = 1024

PACKAGES = {"llama_cpp": "llama-cpp-python"}
"""The package to install for a module of another name."""


@dataclass(frozen=True)
class CheckResult:
    """What became of one format.

    ``dequantized`` is its distance with the model's own weights in place of quantized ones, if it holds such.
    ``baseline`` is the speed of the model itself, measured in turns with the artifact's. ``reasons`` says why it
    failed, or what to do to verify it. ``limits`` are the rows of thresholds that applied.
    """

    format: Format
    status: str
    path: Path
    runtime: str = ""
    metrics: ParityMetrics | None = None
    dequantized: ParityMetrics | None = None
    speed: Speed | None = None
    baseline: Speed | None = None
    reasons: list[str] = field(default_factory=list)
    limits: dict[str, Limits] = field(default_factory=dict)


@dataclass(frozen=True)
class ParityCheck:
    """What every artifact of a bundle is compared with.

    Args:
        loaded: the model.
        evaluation: the held-out text.
        thresholds: limits by precision.
        threads: of every runtime, the reference included.
        reference: the model's own logits.
    """

    loaded: LoadedModel
    evaluation: Evaluation
    thresholds: dict[str, Limits]
    threads: int
    reference: ReferenceLogits

    @classmethod
    def of(
        cls, loaded: LoadedModel, evaluation: Evaluation, thresholds: dict[str, Limits], threads: int
    ) -> ParityCheck:
        """A check that computes the model's own logits as they are needed, each once."""
        return cls(loaded, evaluation, thresholds, threads, ReferenceLogits(loaded.reference, evaluation))

    def run(self, format: Format, path: Path) -> CheckResult:
        """Load an artifact from disk in its own runtime and measure it; what goes wrong in the runtime is raised."""
        writer, problems = format.implementation, []
        limits = {row: self.thresholds[row] for row in (format.precision, "fp32")}
        if not format.missing("writing"):  # Reading a file back takes the packages that write it.
            with quiet():
                text = plain_text(self.loaded.tokenizer, self.evaluation)
                problems = writer.validate_artifact(self.loaded, text, path)
        missing = format.missing("running")
        if missing:
            install = f"install {', '.join(PACKAGES.get(name, name) for name in missing)} to verify it"
            status = FAILED if problems else NOT_VERIFIED
            return CheckResult(format, status, path, reasons=[*problems, install], limits=limits)
        with reference_precision(self.threads), quiet(), closing(writer.open_runner(path, self.threads)) as runner:
            metrics = compare(runner, self.reference)
            exact = None if problems else writer.open_dequantized(self.loaded, path, self.threads)
            dequantized = compare(exact, self.reference) if exact else None
            speed, baseline = self._speeds(runner, eager(self.loaded.model))
        reasons = problems + breaches(metrics, limits[format.precision])
        if dequantized:
            reasons += [f"dequantized: {reason}" for reason in breaches(dequantized, limits["fp32"])]
        status = FAILED if reasons else PASSED
        return CheckResult(format, status, path, runner.runtime, metrics, dequantized, speed, baseline, reasons, limits)

    def baseline_speed(self, results: Sequence[CheckResult]) -> Speed:
        """The model's own, eager with its cache: the best of what was measured in turns with the artifacts."""
        speeds = [result.baseline for result in results if result.baseline]
        if not speeds:
            with reference_precision(self.threads):
                speeds = self._speeds(eager(self.loaded.model))
        return Speed(max(speed.prefill for speed in speeds), max(speed.decode for speed in speeds))

    def _speeds(self, *runners: Runner) -> list[Speed]:
        return measure(runners, self.evaluation.passage(0, SPEED_PASSAGE), self.loaded.model.config.max_seq_len)


def failed_result(format: Format, path: Path, error: Exception) -> CheckResult:
    """The result of a format that could not be written or run."""
    return CheckResult(format, FAILED, path, reasons=[f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"])


def plain_text(tokenizer: Tokenizer, evaluation: Evaluation) -> str:
    """The held-out text for comparing tokenizers, without the token that stands between documents."""
    end = end_of_text_id(tokenizer)
    ids = [id for id in evaluation.windows[:, :-1].flatten().tolist() if id != end]
    text: str = tokenizer.decode(ids, skip_special_tokens=False)
    return text
