"""TensorBoard: Lightning's logger, writing straight into the run directory, without a gap after a resume."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]

from tinytf.run.journal import Record
from tinytf.run.loggers.base import Tracker, hyperparameters, row_of, texts_of, unix_time

OBJECTIVE, HP_METRIC = "val/loss", "hp_metric"
"""What the HPARAMS tab compares runs by, and its second name, Lightning's, which makes it the first column there: the
tab shows five metrics, in the order of the alphabet."""

NOT_COMPARED = frozenset({"checkpoint", "tracking", "export"})
"""Sections of a config that change nothing that is learned."""

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


class TensorBoard(Tracker, TensorBoardLogger):
    """Writes ``events.out.tfevents.*`` next to the run's checkpoints.

    Args:
        run_dir: the run directory.
        resume_step: the step that the run resumes from; what earlier attempts wrote at it or later is superseded.
    """

    key = "tracking.tensorboard"

    def __init__(self, run_dir: Path, resume_step: int | None) -> None:
        import torch.utils.tensorboard  # noqa: F401 - here, not on the tracker's thread: it takes seconds

        super().__init__(str(run_dir), name="", version="", default_hp_metric=False)
        self.first_step = resume_step or 0
        self._announced = False

    def connect(self) -> None:
        # After a failure its writing thread is dead, and only a new file has a new one.
        self._experiment = None
        self._announced = False
        _ = self.experiment

    def send(self, records: deque[Record]) -> None:
        if not self._announced:
            # Supersede what earlier attempts wrote from this step on: this one writes it again, whole. Not
            # SummaryWriter's purge_step: Lightning opens the writer of a run that is done already, too, whose last
            # step would be superseded and never come again. The first attempt announces a session as well, because
            # TensorBoard supersedes at the second that it meets.
            start = Event(step=self.first_step, session_log=SessionLog(status=SessionLog.START))
            self.experiment._get_file_writer().add_event(start)
            self._announced = True
        for record in records:
            if record["step"] >= self.first_step:
                self._show(record)
        self.experiment.flush()  # It raises what its writing thread met.
        records.clear()

    def _show(self, record: Record) -> None:
        step, walltime = record["step"], unix_time(record)
        if record["event"] == "metrics":
            row = row_of(record)
            if OBJECTIVE in row:
                row[HP_METRIC] = row[OBJECTIVE]
            for name, value in row.items():
                self.experiment.add_scalar(name, value, step, walltime)
        if record["event"] == "start" and "config" in record:
            self._add_hyperparameters(record["config"])
            self.experiment.add_custom_scalars(LAYOUT)
        for name, text in texts_of(record).items():
            self.experiment.add_text(name, text, step, walltime)

    def _add_hyperparameters(self, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        shown = {key: value for key, value in config.items() if key not in NOT_COMPARED}
        # Without torch's first summary, the list of columns: with one, TensorBoard shows those of the first run that
        # it meets by their names; without, it looks at all runs, and begins with what differs between them.
        _, *session = hparams(hyperparameters(shown), {})  # type: ignore[no-untyped-call]
        for summary in session:
            self.experiment._get_file_writer().add_summary(summary)

    @rank_zero_only
    def save(self) -> None:
        # Lightning would write a hparams.yaml here too; config.yaml has all of it.
        self.experiment.flush()


def shows(run_dir: Path, records: Iterable[Record]) -> bool:
    """Whether a run's event files have each row of its journal."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    wanted = {(name, record["step"]) for record in records if record["event"] == "metrics" for name in row_of(record)}
    events = EventAccumulator(str(run_dir), size_guidance={"tensors": 0}).Reload()
    names = events.Tags()["tensors"]
    return wanted <= {(name, event.step) for name in names for event in events.Tensors(name)}
