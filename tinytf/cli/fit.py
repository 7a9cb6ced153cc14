"""`tinytf fit`, top to bottom."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from tinytf.cli.config.auto import describe_execution
from tinytf.cli.config.parser import CommandLine, as_list
from tinytf.cli.config.validate import refusals_of, refusals_of_checkpoint
from tinytf.cli.main import heavy_command
from tinytf.export.at_end import ExportConfig, export_at_end, require_exportable_config
from tinytf.export.formats import choose
from tinytf.run.callbacks.checkpoints import best_checkpoints
from tinytf.run.run import Run, is_first_process
from tinytf.training.trainer import Trainer

log = logging.getLogger(__name__)


def run(argv: list[str]) -> int:
    """Train, or resume with ``--ckpt_path``; the exit code."""
    with heavy_command():
        # Flags and files over the checkpoint's config; every value checked; `auto` decided and written into the config;
        # data prepared and the model built.
        fit(CommandLine("fit", argv))
    return 0


def fit(cli: CommandLine) -> None:
    """Train the model of a command line's config on its data."""
    config, objects = cli.plain(), cli.objects
    if objects.export.at_end:  # A format that cannot express the model is refused before it is trained.
        require_exportable_config(choose(objects.export.formats), cli.model.config, cli.data.tokenizer)

    with Run.open(config, cli.data.fingerprint, cli.resume) as run:
        announce(run)
        warn_of_another_schedule(cli, run)
        callbacks = run.callbacks(objects.tracking, objects.checkpoint)
        loggers = [*run.loggers(objects.tracking), *user_loggers(objects.trainer.logger)]
        trainer = build_trainer(
            objects.trainer,
            callbacks=[*cli.callbacks, *callbacks],
            logger=loggers if objects.trainer.logger is not False else False,
            plugins=[*as_list(objects.trainer.plugins), run.checkpoint_io(callbacks)],
        )
        if cli.data.global_batch_size is not None:
            trainer.keep_global_batch(cli.data.global_batch_size, cli.data.batch_size)
        with refusals_of_checkpoint(cli.config.ckpt_path):
            trainer.fit(cli.model, datamodule=cli.data, ckpt_path=cli.config.ckpt_path)
        if objects.export.at_end and trainer.is_global_zero:
            export_best(trainer, objects.export)


def build_trainer(settings: Any, **built: Any) -> Trainer:
    """A Trainer of the ``trainer`` section; Lightning's refusals of a value are UserErrors."""
    with refusals_of("trainer"):
        return Trainer(**{**settings, **built})


def export_best(trainer: Trainer, config: ExportConfig) -> None:
    """Export the best checkpoint of a training that ended; a run that a signal stops does not come here."""
    best = best_checkpoints(trainer)
    if best and best.best_model_path:
        export_at_end(Path(best.best_model_path), config, trainer.loggers)
    else:
        log.warning("export: no checkpoint was kept as the best (checkpoint.save_top_k, val_check_interval)")


def user_loggers(given: Any) -> list[Any]:
    """The loggers of ``trainer.logger``; true, Lightning's default, adds none to those of ``tracking``."""
    return [] if given is True else as_list(given)


def announce(run: Run) -> None:
    """Log where the run is written, and how it resumes."""
    if not is_first_process():
        return
    here, max_steps = os.path.relpath(run.directory), run.config["trainer"]["max_steps"]
    if run.resume is None:
        log.info("run %s: %d steps, %s", here, max_steps, describe_execution(run.config))
    elif run.resume.step >= max_steps:
        log.info(
            "run %s: already at step %d of %d; raise --trainer.max_steps to continue", here, run.resume.step, max_steps
        )
    else:
        log.info("run %s: resuming from step %d of %d", here, run.resume.step, max_steps)


def warn_of_another_schedule(cli: CommandLine, run: Run) -> None:
    """Warn if a longer run would have had other learning rates in the steps that are already done."""
    if run.resume is None or not is_first_process():
        return
    before, now = (config["trainer"]["max_steps"] for config in (run.resume.entry["config"], run.config))
    if before != now and cli.model.schedule.depends_on_max_steps:
        log.warning(
            "trainer.max_steps was %d and is %d: %s decays until max_steps, so the learning rate jumps here, and the "
            "result is not that of a run of %d steps; a Constant schedule, or end_step, would not depend on it",
            before, now, type(cli.model.schedule).__name__, now,
        )  # fmt: skip
