"""A checkpoint to a bundle: what `tinytf export` and the end of a training run do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinytf.export.bundle import Say, export
from tinytf.export.formats import Format
from tinytf.export.judge import Judge
from tinytf.export.subject import Subject
from tinytf.export.text import held_out_text
from tinytf.export.thresholds import with_overrides


def export_checkpoint(
    ckpt_path: Path,
    formats: Sequence[Format],
    *,
    output_dir: Path | None = None,
    text: Path | None = None,
    thresholds: Sequence[str] = (),
    threads: int = 1,
    say: Say,
) -> dict[str, Any]:
    """Export one checkpoint; the content of ``export.json``, whose ``failed`` lists what did not pass.

    Args:
        output_dir: None means ``export`` beside the checkpoint, where the export of an earlier one makes way.
        text: held-out text; None means the run's validation split.
        thresholds: settings such as ``int8.kl=1e-3``.
        threads: CPU threads.
        say: told what happens, line by line.

    Raises:
        UserError: where checkpoint, text, thresholds or folder cannot be used.
    """
    limits = with_overrides(thresholds)
    subject = Subject.from_checkpoint(ckpt_path)
    judge = Judge.of(subject, held_out_text(subject, text), limits, threads)
    folder = output_dir or ckpt_path.resolve().parent / "export"
    content = export(judge, formats, folder, replace=output_dir is None, say=say)
    say(f"wrote {folder}")
    return content
