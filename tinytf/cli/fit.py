"""`tinytf fit`, `validate`, `test` and `predict`: LightningCLI, with checkpoints that carry their own config."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from tinytf.cli.config import resume as resuming
from tinytf.cli.config.auto import decide, how_it_runs
from tinytf.cli.config.errors import Complaint, explain
from tinytf.cli.config.help import describe
from tinytf.cli.config.preparse import Given, scan
from tinytf.cli.config.presets import with_paths
from tinytf.cli.config.problems import find_all, in_order, misplaced, sections_of, with_values
from tinytf.cli.config.validate import placed, problems_of
from tinytf.cli.console import quiet_libraries
from tinytf.cli.predict import print_predictions
from tinytf.cli.shortage import shortage
from tinytf.data.module import TextDataModule
from tinytf.errors import RunError, UserError
from tinytf.export.at_end import ExportAtEnd, ExportSettings
from tinytf.run.callbacks.progress import StepProgress
from tinytf.run.checkpoint_settings import CheckpointSettings
from tinytf.run.directory import LAST, ROOT, last_intact, resolve, versions
from tinytf.run.lock import let_go
from tinytf.run.run import CLAIMED, Resume, build_run, discard_claimed, prepare_folder
from tinytf.run.tracking_settings import TrackingSettings
from tinytf.training.allocation import keep_freed_memory
from tinytf.training.distributed.launcher import lost_process
from tinytf.training.lightning_module import LanguageModel
from tinytf.training.trainer import Trainer
from tinytf.utils.machine import usable_cores

SEED = 1337

log = logging.getLogger(__name__)


def run(argv: list[str]) -> int:
    """Run ``argv[0]``, one of the four commands."""
    quiet_libraries()
    if "OMP_NUM_THREADS" not in os.environ:
        # torch counts the machine's cores; a container may be given a share of their time.
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    keep_freed_memory()
    CLAIMED.clear()  # In a notebook, an earlier run's folder is that run's.
    if not first_process():  # It says everything for all.
        logging.getLogger("tinytf").setLevel(logging.ERROR)
    try:
        command_line(CommandLine, argv)
    except UserError:
        discard_claimed()
        raise
    except Exception as error:
        if reason := shortage(error) or lost_process(error):
            raise RunError(reason) from error
        raise
    finally:
        let_go()
    return 0


def command_line(kind: type[CommandLine], argv: list[str]) -> CommandLine:
    """Build LightningCLI's command line of this kind, which parses and runs."""
    return kind(
        LanguageModel,
        TextDataModule,
        save_config_callback=None,
        trainer_class=Trainer,
        seed_everything_default=SEED,
        parser_class=Parser,
        args=argv,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )


def parser_of(command: str) -> LightningArgumentParser:
    """The parser of one of the four commands, for what describes it; nothing is parsed or built."""
    return command_line(Described, [command])._subcommand_parsers[command]


def first_process() -> bool:
    """Known from the environment, before any process group is."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


class Parser(LightningArgumentParser):
    """Complains in one line."""

    known: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation would turn a typo into another key.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        if not self.exit_on_error:  # A parser that tries one of several types.
            return super().error(message, ex)
        raise explain(message, self.known)


class CommandLine(LightningCLI):
    """LightningCLI for a model whose checkpoints hold their config.

    Where a checkpoint is given, its config is read as if it were the first ``--config`` file: checkpoint < files in
    their order < flags. (LightningCLI would take the model's part alone, and let it win over flags.)
    """

    resume: Resume | None = None

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        # weights_only=False would let a checkpoint run code.
        return {name: skipped | {"weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything", type=int, default=SEED, help="Seed of initialisation, data order and dropout."
        )
        parser.add_argument("--name", type=str, default="default", help="Name of the run, and of its folder.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(CheckpointSettings, "checkpoint")
        parser.add_class_arguments(TrackingSettings, "tracking")
        parser.add_class_arguments(ExportSettings, "export")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.seed")

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        super().setup_parser(*args, **kwargs)
        for parser in self._subcommand_parsers.values():
            describe(parser._actions)

    # -- parsing -----------------------------------------------------------------------------------------------

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        command, *rest = args
        rest = with_paths(rest)
        given = scan(rest)
        Parser.known = tuple(action.dest for action in self._subcommand_parsers[command]._actions)
        asks_help = {"-h", "--help", "--print_config"} & {flag.split("=")[0] for flag in rest}
        if ckpt := find_checkpoint(command, given, required=not asks_help):
            self.resume = Resume.read(ckpt)
            named = frozenset(resuming.words([rest, given.contents]))
            taken = resuming.defaults(command, self.resume.entry["config"], ckpt, named)
        base = ["--config", json.dumps(taken)] if ckpt else []
        self.config = self._parse(command, base, rest, given)
        self.config[command]["ckpt_path"] = str(ckpt) if ckpt else None
        if self.resume:
            resuming.refuse_changes(command, self._plain(command), self.resume.entry["config"], self.resume.path)

    def decide(self, config: Any) -> None:
        """Write what `auto` means into the config."""
        decide(config)

    def _parse(self, command: str, base: list[str], rest: list[str], given: Given) -> Any:
        """The config, or all that is wrong with it."""

        def parse(argv: list[str]) -> Any:
            return self.parser.parse_args([command, *argv])

        def of_values(config: Any) -> list[str]:
            return placed(
                problems_of(command, config[command], actions, self.decide), given.configs, rest, Parser.known
            )

        actions = self._subcommand_parsers[command]._actions
        sections = sections_of(Parser.known)
        if not given.problems and not any(list(misplaced(content, sections)) for content in given.contents):
            with contextlib.suppress(Complaint):
                config = parse([*base, *rest])
                if lines := of_values(config):
                    raise UserError(*in_order(lines, given.configs))
                return config
        found = find_all(parse, base, rest, given, sections)
        raise UserError(*in_order(with_values(found, of_values, parse), given.configs))

    def _parse_ckpt_path(self) -> None:
        """LightningCLI's way to take over a checkpoint's settings; done above."""

    def _plain(self, command: str) -> dict[str, Any]:
        """The resolved config in plain types, as config.yaml and every checkpoint hold it."""
        text = self.parser.dump(self.config, skip_unset=False, format="yaml")
        plain: dict[str, Any] = yaml.safe_load(text)[command]
        return {key: value for key, value in plain.items() if key not in ("config", "ckpt_path")}

    # -- building ----------------------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        if self.resume:
            self.datamodule.use_tokenizer(self.resume.entry["tokenizer"])
        given = self.config_init[self.subcommand]
        settings = {**given["trainer"], **kwargs, "callbacks": as_list(given["trainer"]["callbacks"])}
        if self.subcommand == "fit":
            self._add_run(settings, given)
        else:
            self._look_at_text()
            if self.subcommand == "predict":
                settings["devices"] = one_device(settings["devices"])
            settings["logger"] = False
            settings["callbacks"] += [StepProgress()] if settings["enable_progress_bar"] is not False else []
        try:
            trainer: Any = self.trainer_class(**settings)
        except (MisconfigurationException, ValueError) as error:
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error
        if self.datamodule.global_batch_size is not None and self.subcommand == "fit":
            trainer.keep_global_batch(self.datamodule.global_batch_size, self.datamodule.batch_size)
        return trainer

    def _look_at_text(self) -> None:
        if not (self.resume and first_process()):
            return
        self.datamodule.prepare_data()
        self.datamodule.setup()
        if notice := resuming.notice_of_other_text(
            self.datamodule.fingerprint, self.resume.entry["data"], self.resume.path
        ):
            log.warning("%s", notice)

    def _add_run(self, settings: dict[str, Any], given: Any) -> None:
        config, data, folder = self._plain("fit"), {}, Path()
        at_end = [ExportAtEnd(given["export"].formats)] if given["export"].at_end else []
        if first_process():
            # Here, so that text which cannot be used is found before a folder is made for the run.
            self.datamodule.prepare_data()
            self.datamodule.setup()
            data = self.datamodule.fingerprint
            if self.resume:
                resuming.refuse_other_text(data, self.resume.entry["data"], self.resume.path)
                warn_of_another_schedule(self.model, config, self.resume)
            for export in at_end:
                shape = replace(self.model.shape, vocab_size=self.datamodule.vocab_size)
                export.refuse_unfit(shape, self.datamodule.tokenizer)
            folder = prepare_folder(Path(given["checkpoint"].dir), given["name"], config, self.resume)
            announce(folder, config, self.resume)
        self.run_parts = build_run(folder, config, data, given["checkpoint"], given["tracking"], self.resume)
        settings["callbacks"] += [*self.run_parts.callbacks, *at_end]
        if settings["logger"] is not False:
            theirs = [] if settings["logger"] is True else as_list(settings["logger"])
            settings["logger"] = [*self.run_parts.loggers, *theirs]
        settings["plugins"] = [*as_list(settings["plugins"]), self.run_parts.io]

    # -- running -----------------------------------------------------------------------------------------------

    def predict(self, model: LanguageModel, datamodule: TextDataModule, **kwargs: Any) -> None:
        """One JSON object a window of the validation split, on stdout."""
        batches = self.trainer.predict(model, datamodule=datamodule, **kwargs)
        print_predictions(batches or [], datamodule)


class Described(CommandLine):
    """A command line that stops once its parsers stand."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = Namespace(subcommand=None, seed_everything=False)  # type: ignore[no-untyped-call]

    def instantiate_classes(self) -> None:
        """There is nothing to build from."""


def find_checkpoint(command: str, given: Given, required: bool) -> Path | None:
    """The checkpoint that a command starts from; None for a training run that starts afresh."""
    root = Path(given.root or ROOT)
    if given.ckpt_path is None:
        if command != "fit" and required:
            raise UserError(f"tinytf {command} needs --ckpt_path: a file, best or last")
        return None
    if command == "fit" and given.ckpt_path == LAST:
        # Strictly the newest run: one that was killed before its first save starts again, not an older one.
        runs = versions(root, given.name)
        newest = last_intact(runs[-1]) if runs else None
        if newest is None:
            log.info("--ckpt_path last: no intact checkpoint yet in %s, starting afresh", runs[-1] if runs else root)
        return newest
    return resolve(given.ckpt_path, given.name, root)


def announce(folder: Path, config: dict[str, Any], resume: Resume | None) -> None:
    """Say where the run is written, and how it goes on."""
    here = os.path.relpath(folder)
    max_steps = config["trainer"]["max_steps"]
    if resume is None:
        log.info("run %s: %d steps, %s", here, max_steps, how_it_runs(config))
        return
    if resume.step >= max_steps:
        log.info("run %s: already at step %d of %d; raise --trainer.max_steps to go on", here, resume.step, max_steps)
        return
    log.info("run %s: going on from step %d of %d", here, resume.step, max_steps)


def warn_of_another_schedule(model: LanguageModel, config: dict[str, Any], resume: Resume) -> None:
    """Say so where a longer run would have had other learning rates in the steps that are already done."""
    before, now = (c["trainer"]["max_steps"] for c in (resume.entry["config"], config))
    if before != now and model.schedule.depends_on_max_steps:
        log.warning(
            "trainer.max_steps was %d and is %d: %s decays until max_steps, so the learning rate jumps here, and the "
            "result is not that of a run of %d steps; a Constant schedule, or end_step, would not depend on it",
            before, now, type(model.schedule).__name__, now,
        )  # fmt: skip


def one_device(devices: Any) -> Any:
    """The only device of a command whose lines are in the order of the split."""
    if devices == "auto":
        return 1
    if devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1):
        return devices
    raise UserError(
        f"trainer.devices {devices}: predict writes the windows in their order, on one device; leave it out"
    )


def as_list(value: Any) -> list[Any]:
    """A value that may stand alone, be missing, or be several, as several."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
