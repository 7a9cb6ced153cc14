"""TensorBoard: Lightning's logger, writing straight into the run directory, without a gap after a resume."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]

from tinytf.run.journal import Record
from tinytf.run.loggers.base import as_code_block, row_of

OBJECTIVE = "val/loss"
"""What the HPARAMS tab compares runs by."""

LAYOUT = {
    "training": {
        "loss": ["Multiline", ["train/loss$", "train/loss_smooth$", "val/loss$"]],
        "bits per byte": ["Multiline", ["val/bits_per_byte$"]],
        "learning rate": ["Multiline", ["^lr$"]],
        "gradient norm": ["Multiline", ["train/grad_norm$"]],
    },
    "machine": {
        "tokens per second": ["Multiline", ["train/tokens_per_sec$"]],
        "model FLOPs utilization": ["Multiline", ["train/mfu$"]],
        "waiting for data": ["Multiline", ["train/data_wait$"]],
        "memory (GiB)": ["Multiline", ["system/memory_gb$", "system/gpu_memory_gb$"]],
    },
}
"""The custom-scalars page: charts of what a person looks at together. Tags are regular expressions."""


class TensorBoard(TensorBoardLogger):
    """Writes ``events.out.tfevents.*`` next to the run's checkpoints.

    Args:
        run_dir: the run directory.
        resume_step: the step that the run resumes from; what earlier attempts wrote at it or later is superseded.
    """

    def __init__(self, run_dir: Path, resume_step: int | None) -> None:
        super().__init__(str(run_dir), name="", version="", default_hp_metric=False)
        self.resume_step = resume_step

    @rank_zero_only
    def save(self) -> None:
        # Lightning would write a hparams.yaml here too; config.yaml has all of it.
        self.experiment.flush()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any], *_: Any, **__: Any) -> None:  # type: ignore[override]
        # Lightning's would log a first val/loss of its own making. TensorBoard takes the run's last one.
        from torch.utils.tensorboard.summary import hparams

        writer = self.experiment._get_file_writer()
        for summary in hparams(params, {OBJECTIVE: 0.0}):  # type: ignore[no-untyped-call]
            writer.add_summary(summary)
        self.experiment.add_custom_scalars(LAYOUT)

    @rank_zero_only
    def log_text(self, name: str, text: str, step: int) -> None:
        """Add a text to the TEXT page."""
        self.experiment.add_text(name, text, step)

    def log_best(self, path: Path) -> None:
        """Nothing: TensorBoard keeps no files, and the checkpoint is next to its events."""

    def log_export(self, folder: Path) -> None:
        """Nothing: TensorBoard keeps no files, and the bundle is next to its events."""

    @rank_zero_only
    def on_resume(self, records: Iterable[Record]) -> None:
        """Supersede what earlier attempts wrote from the step that the run resumes from on, and write its row again."""
        # Not SummaryWriter's purge_step: Lightning opens the writer of a run that is done already, too, whose last step
        # would be superseded and never come again. The first attempt announces a session as well, because TensorBoard
        # supersedes at the second that it meets.
        start = Event(step=self.resume_step or 0, session_log=SessionLog(status=SessionLog.START))
        self.experiment._get_file_writer().add_event(start)
        if self.resume_step is None:
            return
        # Superseding is by whole steps; what is still true of the very step is written again.
        for record in records:
            if record["step"] == self.resume_step and record["event"] == "metrics":
                self.log_metrics(row_of(record), self.resume_step)
            elif record["step"] == self.resume_step and record["event"] == "sample":
                self.log_text(
                    f"sample/{record['index']}", as_code_block(record["prompt"] + record["text"]), self.resume_step
                )
