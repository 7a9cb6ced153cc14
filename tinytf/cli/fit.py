"""`tinytf fit`, top to bottom."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinytf.cli.config.auto import describe_execution
from tinytf.cli.config.parser import CommandLine, as_list
from tinytf.cli.config.validate import refusals_of, refusals_of_checkpoint
from tinytf.cli.main import heavy_command
from tinytf.cli.paste import console_script, from_here
from tinytf.data.datamodule import TextDataModule
from tinytf.export.at_end import ExportConfig, export_at_end, require_exportable_config
from tinytf.export.formats import choose
from tinytf.run.callbacks import steps_remain
from tinytf.run.callbacks.averaging import averaged_by
from tinytf.run.callbacks.checkpoints import best_checkpoints
from tinytf.run.callbacks.journal import early_stop_reason, journal_of
from tinytf.run.callbacks.progress import clock
from tinytf.run.directory import ROOT
from tinytf.run.run import Run
from tinytf.training.lightning_module import LanguageModel
from tinytf.training.trainer import Trainer, describe_readings, overfitting
from tinytf.utils.files import shorten
from tinytf.utils.text import public

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

    with Run.open(config, cli.data.fingerprint, cli.resume, cli.model.base_identity) as run:
        callbacks = run.callbacks(objects.tracking, objects.checkpoint, cli.callbacks)
        loggers = run.loggers(objects.tracking, user_loggers(objects.trainer.logger))
        trainer = build_trainer(
            objects.trainer,
            callbacks=callbacks,
            logger=loggers if objects.trainer.logger is not False else False,
            plugins=[*as_list(objects.trainer.plugins), run.checkpoint_io(callbacks)],
        )
        if cli.data.global_batch_size is not None:
            trainer.keep_global_batch(cli.data.global_batch_size, cli.data.batch_size)
        if trainer.is_global_zero:
            announce(run, trainer, cli.model, cli.data)
            warn_of_another_schedule(cli, run)
        with refusals_of_checkpoint(cli.config.ckpt_path):
            trainer.fit(cli.model, datamodule=cli.data, ckpt_path=cli.config.ckpt_path)
        if trainer.is_global_zero:
            summarize(run, trainer)
            if objects.export.at_end:
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
        log.warning("export: no checkpoint was kept as the best (checkpoint.save_top_k, trainer.limit_val_batches)")


def user_loggers(given: Any) -> list[Any]:
    """The loggers of ``trainer.logger``; true, Lightning's default, adds none to those of ``tracking``."""
    return [] if given is True else as_list(given)


def announce(run: Run, trainer: Trainer, model: LanguageModel, data: TextDataModule) -> None:
    """Log where the run is written, how it resumes, what it trains, and how often it reads its text."""
    here, max_steps, resume = from_here(run.directory), trainer.max_steps, run.resume
    if resume and resume.step >= max_steps:
        at = f"already at step {resume.step} of {max_steps}"
        log.info("run %s: %s; raise --trainer.max_steps to continue", here, at)
        return
    if resume:
        log.info("run %s: resuming from step %d of %d", here, resume.step, max_steps)
    else:
        log.info("run %s: %d steps, %s", here, max_steps, describe_execution(run.config))
    tokens = len(data.split("train"))
    windows = data.batch_size * trainer.accumulate_grad_batches * trainer.num_devices * trainer.num_nodes
    readings = max_steps * windows / data.windows_per_epoch
    size, corpus = f"{model.config.parameter_count:,} parameters", shorten(public(data.config.corpus), 80)
    trained = sum(p.numel() for p in model.model.parameters() if p.requires_grad)
    if trained != model.config.parameter_count:  # An adapter's are beside them.
        size += f" and an adapter of {trained:,}" if model.adapter else f", {trained:,} of them trained"
    text = f"{corpus} (tokenizer {shorten(data.config.tokenizer, 80)})"
    log.info("run %s: %s; %s: %s", here, size, text, describe_readings(tokens, readings, data.training_examples))
    warmup = run.config["model"]["schedule"].get("init_args", {}).get("warmup_steps")
    if isinstance(warmup, int) and warmup >= max_steps:
        log.warning(
            "model.schedule.warmup_steps is %d: this run of %d steps ends before the learning rate is at its peak",
            warmup, max_steps,
        )  # fmt: skip
    if warning := overfitting(readings, max_steps):
        log.warning("%s", warning)
    if not trainer.limit_val_batches:
        log.warning("trainer.limit_val_batches is 0: nothing is validated, so there will be no best checkpoint")


def summarize(run: Run, trainer: Trainer) -> None:
    """Log how the run ended, its best checkpoint, and the commands that come next, ready to paste."""
    here, journal, best = from_here(run.directory), journal_of(trainer), best_checkpoints(trainer)
    took = f" in {clock(journal.seconds())}" if journal else ""
    at = f"at step {trainer.global_step} of {trainer.max_steps}{took}"
    if steps_remain(trainer):
        log.info("run %s: stopped early %s (%s)", here, at, early_stop_reason(trainer))
    else:
        log.info("run %s: finished %s", here, at)
    if best and best.best_model_path and best.best_model_score is not None:
        averaged = "".join(f", weights averaged by {name}" for name in averaged_by(trainer.callbacks).values())  # type: ignore[attr-defined]
        log.info(
            "best checkpoint: %s, val/loss %.4f%s", from_here(best.best_model_path), best.best_model_score, averaged
        )
    else:
        why = "nothing was validated" if best and best.save_top_k else "checkpoint.save_top_k is 0"
        log.info("best checkpoint: none, because %s", why)
    log.info("next:")
    for line in next_commands(run.config, here, "best.ckpt" if best and best.best_model_path else "last.ckpt"):
        log.info("  %s", line)


def next_commands(config: Mapping[str, Any], run_dir: str, name: str) -> list[str]:
    """What to do with a finished run, as one would type it in this folder."""
    tinytf, root = console_script("tinytf"), config["checkpoint"]["dir"]
    ckpt = f"--ckpt_path {shlex.quote(str(Path(run_dir, name)))}"
    prompts, tensorboard = config["tracking"]["samples"]["prompts"], config["tracking"]["tensorboard"]
    # Of a run outside of it, validate and export would ask for its text again.
    at = "" if root == str(ROOT) else f" {shlex.quote(root)}"
    return [
        # With "=", because a prompt may begin with a dash.
        f"{tinytf} generate {ckpt}" + (f" --prompt={shlex.quote(prompts[0])}" if prompts else ""),
        f"{tinytf} validate {ckpt}" + (at and f" --checkpoint.dir{at}"),
        *([] if config["export"]["at_end"] else [f"{tinytf} export {ckpt}" + (at and f" --root{at}")]),
        *([f"{console_script('tensorboard')} --logdir {shlex.quote(root)}"] if tensorboard else []),
    ]


def warn_of_another_schedule(cli: CommandLine, run: Run) -> None:
    """Warn if a longer run would have had other learning rates in the steps that are already done."""
    if run.resume is None:
        return
    before, now = (config["trainer"]["max_steps"] for config in (run.resume.entry["config"], run.config))
    # A scheduler of torch knows its own end.
    if before != now and getattr(cli.model.schedule, "depends_on_max_steps", False):
        log.warning(
            "trainer.max_steps was %d and is %d: %s decays until max_steps, so the learning rate jumps here, and the "
            "result is not that of a run of %d steps; a Constant schedule, or end_step, would not depend on it",
            before, now, type(cli.model.schedule).__name__, now,
        )  # fmt: skip
