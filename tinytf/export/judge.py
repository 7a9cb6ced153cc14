"""One artefact's verdict: it runs, it is measured, it is held to its thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from tinytf.data.tokenizer import end_of_text_id
from tinytf.export.evaluation import Evaluation
from tinytf.export.formats import Format
from tinytf.export.proof import Measured, Reference, prove
from tinytf.export.quiet import quiet
from tinytf.export.runner import Runner, eager, reference_precision
from tinytf.export.speed import Speed, measure
from tinytf.export.subject import Subject
from tinytf.export.thresholds import Limits, breaches

PASSED, FAILED, NOT_VERIFIED = "passed", "failed", "not verified"
SPEED_PASSAGE = 1024


@dataclass(frozen=True)
class Outcome:
    """What became of one format.

    ``unrounded`` is its distance with the model's own weights in the place of rounded ones, where it holds such.
    ``beside`` is the speed of the model itself, measured by turns with the artefact's. ``reasons`` says why it failed,
    or what to install to verify it. ``limits`` are the rows of thresholds that it was held to.
    """

    format: Format
    status: str
    path: Path
    runtime: str = ""
    measured: Measured | None = None
    unrounded: Measured | None = None
    speed: Speed | None = None
    beside: Speed | None = None
    reasons: list[str] = field(default_factory=list)
    limits: dict[str, Limits] = field(default_factory=dict)


@dataclass(frozen=True)
class Judge:
    """What every artefact of a bundle is held against.

    Args:
        subject: the model.
        evaluation: the held-out text.
        thresholds: limits by precision.
        threads: of every runtime, the reference included.
    """

    subject: Subject
    evaluation: Evaluation
    thresholds: dict[str, Limits]
    threads: int
    reference: Reference

    @classmethod
    def of(cls, subject: Subject, evaluation: Evaluation, thresholds: dict[str, Limits], threads: int) -> Judge:
        """A judge with the checkpoint's own answers at hand."""
        return cls(subject, evaluation, thresholds, threads, Reference(subject.model, evaluation))

    def verdict(self, format: Format, path: Path) -> Outcome:
        """Load an artefact from disk in its own runtime and measure it; what goes wrong there is raised."""
        problems: list[str] = []
        limits = {row: self.thresholds[row] for row in (format.precision, "fp32")}
        if not format.missing("writing"):  # Reading a file back takes what writes it.
            with quiet():
                problems = format.problems(self.subject, plain_text(self.subject.tokenizer, self.evaluation), path)
        missing = format.missing("running")
        if missing:
            install = f"install {', '.join(PACKAGES.get(name, name) for name in missing)} to verify it"
            status = FAILED if problems else NOT_VERIFIED
            return Outcome(format, status, path, reasons=[*problems, install], limits=limits)
        with reference_precision(self.threads), quiet():
            runner = format.open_runner(path, self.threads)
            measured = prove(runner, self.reference)
            unrounded = None if problems else self._unrounded(format, path)
            speed, beside = self._speeds(runner, eager(self.subject.model))
        reasons = problems + breaches(measured, limits[format.precision])
        if unrounded:
            reasons += [f"unrounded: {reason}" for reason in breaches(unrounded, limits["fp32"])]
        status = FAILED if reasons else PASSED
        return Outcome(format, status, path, runner.runtime, measured, unrounded, speed, beside, reasons, limits)

    def _unrounded(self, format: Format, path: Path) -> Measured | None:
        runner = format.open_unrounded(self.subject, path, self.threads)
        return prove(runner, self.reference) if runner else None

    def reference_speed(self, outcomes: Sequence[Outcome]) -> Speed:
        """The model's own, eager with its cache: the best of what was measured beside the artefacts."""
        seen = [outcome.beside for outcome in outcomes if outcome.beside]
        if not seen:
            with reference_precision(self.threads):
                seen = self._speeds(eager(self.subject.model))
        return Speed(max(speed.prefill for speed in seen), max(speed.decode for speed in seen))

    def _speeds(self, *runners: Runner) -> list[Speed]:
        return measure(runners, self.evaluation.passage(0, SPEED_PASSAGE), self.subject.model.config.max_seq_len)


PACKAGES = {"llama_cpp": "llama-cpp-python"}
"""What a module's package is called where it is installed from, where that differs."""


def crashed(format: Format, path: Path, error: Exception) -> Outcome:
    """The outcome of a format that could not be written or run."""
    return Outcome(format, FAILED, path, reasons=[f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"])


def plain_text(tokenizer: Tokenizer, evaluation: Evaluation) -> str:
    """The held-out text for comparing tokenizers, without the token that stands between documents."""
    end = end_of_text_id(tokenizer)
    ids = [id for id in evaluation.windows[:, :-1].flatten().tolist() if id != end]
    text: str = tokenizer.decode(ids, skip_special_tokens=False)
    return text
