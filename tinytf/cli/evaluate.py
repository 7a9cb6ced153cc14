"""`tinytf validate`, `test` and `predict`: a checkpoint's numbers, from the checkpoint alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from tinytf.cli.config.parser import CommandLine
from tinytf.cli.config.resume import notice_of_other_text
from tinytf.cli.config.validate import refusals_of_checkpoint
from tinytf.cli.fit import build_trainer
from tinytf.cli.main import heavy_command
from tinytf.cli.paste import from_here
from tinytf.data.datamodule import TextDataModule
from tinytf.data.windows import IGNORE_INDEX
from tinytf.errors import UserError
from tinytf.run.callbacks.progress import progress_bar
from tinytf.run.run import is_first_process
from tinytf.training.trainer import Trainer
from tinytf.utils.text import strict_json

log = logging.getLogger(__name__)


def validate(argv: list[str]) -> int:
    """Evaluate a checkpoint on the validation split; the exit code."""
    return evaluate("validate", argv)


def test(argv: list[str]) -> int:
    """Evaluate a checkpoint on the test split; the exit code."""
    return evaluate("test", argv)


def evaluate(command: str, argv: list[str]) -> int:
    with heavy_command():
        cli = CommandLine(command, argv)
        measure = getattr(evaluation_trainer(cli), command)  # Lightning's methods have the commands' names.
        if command == "validate" and is_first_process():
            note_other_batches(cli)
        path, verbose = cli.config.ckpt_path, cli.config.verbose
        if is_first_process():
            log.info("evaluating %s", from_here(path) if path else cli.config.model.base)
        with refusals_of_checkpoint(path):
            measure(cli.model, datamodule=cli.data, ckpt_path=path, verbose=verbose, weights_only=True)
    return 0


def predict(argv: list[str]) -> int:
    """Print one JSON object per window of the validation split; the exit code."""
    with heavy_command():
        cli = CommandLine("predict", argv)
        trainer = evaluation_trainer(cli, devices=one_device(cli.config.trainer.devices))
        path, keep = cli.config.ckpt_path, cli.config.return_predictions
        with refusals_of_checkpoint(path):
            batches = trainer.predict(
                cli.model, datamodule=cli.data, return_predictions=keep, ckpt_path=path, weights_only=True
            )
        print_predictions(batches or [], cli.data)
    return 0


def evaluation_trainer(cli: CommandLine, **settings: Any) -> Trainer:
    """A Trainer without loggers, after a look at whether the text is still that of training."""
    if cli.resume and is_first_process():
        notice = notice_of_other_text(cli.data.fingerprint, cli.resume.entry["data"], cli.resume.path)
        if notice:
            log.warning("%s", notice)
    bar = progress_bar(cli.config.trainer.enable_progress_bar, cli.callbacks)
    return build_trainer(cli.objects.trainer, callbacks=[*cli.callbacks, *bar], logger=False, **settings)


def note_other_batches(cli: CommandLine) -> None:
    """Say that the run measured its val/loss on fewer or more batches than this command does, if it did."""
    if cli.resume is None:
        return
    saved = cli.resume.entry["config"]
    then, now = validated_part(saved["trainer"], saved["data"]), validated_part(cli.config.trainer, cli.config.data)
    if saved["trainer"].get("limit_val_batches") != 0 and then != now:
        log.info(
            "note: the val/loss of the run, also in its checkpoints' names, was measured on %s; this one is measured "
            "on %s, and need not be the same",
            then, now,
        )  # fmt: skip


def validated_part(trainer: Any, data: Any) -> str:
    """Which windows of the split are validated, in words."""
    limit, size = trainer.get("limit_val_batches"), data.get("batch_size")
    if limit is None or (isinstance(limit, float) and limit == 1):
        return "the whole split"
    part = f"{limit:.0%}" if isinstance(limit, float) else f"{limit} batches of {size} windows"
    return f"the first {part} of the split (trainer.limit_val_batches {limit})"


def print_predictions(batches: Iterable[Any], data: TextDataModule) -> None:
    """Print one JSON object per window: its position, length in tokens, loss, perplexity and text."""
    start = 0
    for batch in batches:
        for losses, targets in zip(batch["losses"], batch["targets"], strict=True):
            real = targets != IGNORE_INDEX
            if real.any():
                print(strict_json(window(start, losses[real], targets[real], data)))
                start += int(real.sum())


def window(start: int, losses: Tensor, targets: Tensor, data: TextDataModule) -> dict[str, Any]:
    """One window's line; the loss is in nats per token."""
    loss = losses.mean().item()
    text = data.tokenizer.decode(targets.tolist(), skip_special_tokens=False)
    return {"start": start, "tokens": len(losses), "loss": loss, "perplexity": math.exp(loss), "text": text}


def one_device(devices: Any) -> Any:
    """The only device of a command whose lines are in the order of the split."""
    if devices == "auto":
        return 1
    if devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1):
        return devices
    raise UserError(
        f"trainer.devices {devices}: predict writes the windows in their order, on one device; leave it out"
    )
