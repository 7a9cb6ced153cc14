"""LightningCLI for a model whose checkpoints carry their config."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from tinytf.cli.config import resume as resuming
from tinytf.cli.config.auto import resolve_auto
from tinytf.cli.config.base import take_base
from tinytf.cli.config.errors import OneLineErrors, causes
from tinytf.cli.config.files import Arguments, as_config, read_arguments
from tinytf.cli.config.help import help_text, refuse_unused, topic_of
from tinytf.cli.config.keys import ConfigError, Keys, check_flags, check_keys, set_help_texts
from tinytf.cli.config.own_modules import find_own_modules, refuse_missing_modules, texts
from tinytf.cli.config.strict_yaml import STRICT
from tinytf.cli.config.validate import check_machine, refusals_of, validate
from tinytf.data.datamodule import TextDataModule
from tinytf.errors import UserError
from tinytf.export.at_end import ExportConfig
from tinytf.run.config import CheckpointConfig, TrackingConfig
from tinytf.run.directory import (
    BEST,
    LAST,
    ROOT,
    is_own,
    last_intact,
    refuse_unknown_name,
    resolve_checkpoint,
    run_dirs,
)
from tinytf.run.run import OptionalCallbacks, Resume
from tinytf.training.lightning_module import LanguageModel
from tinytf.training.trainer import Trainer
from tinytf.utils.files import user_path
from tinytf.utils.text import HIDDEN, hidden_keys
from tinytf.weights.base import BaseModel
from tinytf.weights.checkpoint import base_of_adapter

SEED = 1337
NOT_SETTINGS = ("config", "ckpt_path")
"""What a command line says of where settings come from; config.yaml leaves it out."""

log = logging.getLogger(__name__)


class Parser(OneLineErrors, LightningArgumentParser):
    """Refuses in one line, reads YAML with bounds, and takes no file as the value of a key, nor an abbreviation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation would turn a typo into another key.
        super().__init__(*args, **{**kwargs, "allow_abbrev": False, "parser_mode": STRICT})

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        # With sub_configs, which Lightning asks for, a text where a class may stand is a file to read if there is one
        # of that name: `trainer.callbacks: LICENSE` of a checkpoint would import what ./LICENSE names.
        return super().add_class_arguments(*args, **{**kwargs, "sub_configs": False})


class CommandLine(LightningCLI):
    """The config of one command, checked, and the objects that it describes.

    If a checkpoint is given, its config is read as if it were the first ``--config`` file: checkpoint < files in
    their order < flags. (LightningCLI would take the model's part alone, and let it win over flags.)

    Attributes:
        config: every key, `auto` resolved.
        resume: the checkpoint that the command starts from.
        base: the pretrained model that a new run starts from; a resumed one has its weights, and does not open it.
        data, model, callbacks: what the config describes; the Trainer is the command's to build.
    """

    resume: Resume | None = None
    base: BaseModel | None = None
    data: TextDataModule
    model: LanguageModel
    callbacks: list[Callback]

    def __init__(self, command: str, argv: list[str]) -> None:
        self.command = command
        super().__init__(
            LanguageModel,
            TextDataModule,
            save_config_callback=None,
            trainer_class=Trainer,
            seed_everything_default=SEED,
            parser_class=Parser,
            parser_kwargs={"prog": f"tinytf {command}"},
            args=argv,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # -- the parser ------------------------------------------------------------------------------------------------

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything", type=int, default=SEED, help="Seed of initialization, data order and dropout."
        )
        parser.add_argument("--name", type=str, default="default", help="Name of the run, and of its folder.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(CheckpointConfig, "checkpoint")
        # Not instantiated: its objects are the Namespace of its fields and of the callbacks that are declared in it.
        parser.add_class_arguments(TrackingConfig, "tracking", instantiate=False)
        for name, callback in get_type_hints(OptionalCallbacks).items():
            parser.add_class_arguments(callback, f"tracking.{name}")
        parser.add_class_arguments(ExportConfig, "export")
        # weights_only=False would let a checkpoint run code.
        skip = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders", "weights_only"}
        parser.add_method_arguments(Trainer, self.command, skip=skip)
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.seed")
        # `apply_on` links the data module's properties, not its keys: the size of the tokenizer in use, while the key
        # is what a bpe tokenizer is trained to. Asking for it prepares the data: here, before any process group exists,
        # so that no rank waits in a group's timeout (30 minutes) for a tokenizer.
        parser.link_arguments("data.vocab_size", "model.vocab_size", apply_on="instantiate")
        parser.link_arguments("data.bytes_per_token", "model.bytes_per_token", apply_on="instantiate")
        set_help_texts(parser._actions)

    # -- parsing ---------------------------------------------------------------------------------------------------

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        topic = topic_of(args)
        if topic is not None:
            print(help_text(parser, self.command, topic))
            raise SystemExit(0)
        given = read_arguments(args)
        try:
            self.config = self._parse(given)
        except ConfigError as error:
            raise UserError(f"{given.location(error.key) if error.key else ''}{error}") from None

    def _parse(self, given: Arguments) -> Namespace:
        keys = Keys(self.parser.get_defaults().keys(), self.parser.prog)
        for file in given.files:
            check_keys(file.content, keys)
        check_flags(given.flags, keys)
        refuse_unused(self.command, given.flags)
        refuse_made_of_schedulers(given)
        find_own_modules(given)
        prints = any(flag.partition("=")[0] == "--print_config" for flag in given.flags)
        ckpt = find_checkpoint(self.command, given, required=not prints)
        base = as_config(self._defaults(ckpt, given)) if ckpt else []
        files = [argument for file in given.files for argument in file.as_argument(keys.sections)]
        try:
            config: Namespace = self.parser.parse_args([*base, *files, *given.flags])
        except ConfigError as error:
            if self.resume and self.resume.own:
                refuse_missing_modules(self.resume.entry["config"], self.resume.path, error.key)
            raise
        config.ckpt_path = str(ckpt) if ckpt else None
        if isinstance(config.trainer.callbacks, list):
            # A command line that starts and resumes with += adds to the checkpoint's list what is already in it.
            own = config.trainer.callbacks
            config.trainer.callbacks = [each for n, each in enumerate(own) if not self.resume or each not in own[:n]]
        self._refuse_nulls(config)
        if config.checkpoint.dir.startswith("~"):  # Which shells leave as it is after a "=".
            config.checkpoint.dir = str(user_path(config.checkpoint.dir, what="checkpoint.dir"))
        try:
            self.take_base(config, given)
        except ConfigError as error:
            raise UserError(f"{given.location(error.key)}{error}") from None
        try:
            refuse_hidden(config)
            validate(self.command, config)
            self.check_machine(config)
            self.resolve_auto(config)
        except UserError as error:
            raise UserError(f"{given.location(*keys.named_in(str(error)))}{error}") from None
        if self.resume:
            saved = self.resume.entry["config"]
            resuming.refuse_changes(self.command, self.plain(config), saved, self.resume.path, given.keys)
            if self.command == "fit" and not self.resume.own:
                resuming.name_tokenizer(config, self.parser.get_defaults(), self.resume, given.keys)
        return config

    def _defaults(self, ckpt: Path, given: Arguments) -> dict[str, Any]:
        """What is taken over from a checkpoint."""
        own = is_own(ckpt, user_path(given.root or ROOT, what="checkpoint.dir"))
        self.resume = replace(Resume.read(ckpt), own=own)
        config = self.resume.entry["config"]
        resuming.refuse_contradictions(self.resume.entry, ckpt)
        if own:
            return resuming.own_defaults(self.command, config, ckpt)
        usual = self.plain(self.parser.get_defaults())
        return resuming.strangers_defaults(self.command, config, ckpt, usual, given.keys)

    def take_base(self, config: Any, given: Arguments) -> None:
        """Write what `model.base` says into the config."""
        if self.resume is None:
            self.base = take_base(config, given, self.parser.get_defaults(), weights=True)
        elif "adapter" in self.resume.entry and config.model.adapter:
            # Of a stranger's, the config has no base that the user has not given.
            self.base = base_of_adapter(self.resume.entry, self.resume.path, config.model.base, own=True)

    def check_machine(self, config: Any) -> None:
        """Refuse what this machine cannot run."""
        check_machine(config)

    def resolve_auto(self, config: Any) -> None:
        """Write what `auto` means into the config."""
        resolve_auto(config)

    def _refuse_nulls(self, config: Namespace) -> None:
        """Raise at a null that a file gives for a setting with no such value: jsonargparse takes it for "not given"."""
        defaults = self.parser.get_defaults()
        for key in defaults.keys():  # noqa: SIM118 - a Namespace's keys are dotted, what iterating gives is not
            if defaults[key] is not None and key in config and config[key] is None:
                try:
                    alone = self.parser.parse_args([f"--{key}=null"])
                except ConfigError as error:
                    raise ConfigError(key, f"{error}; leave it out for its default") from None
                if alone[key] is not None:  # As a flag it is the text "null".
                    raise ConfigError(key, f"{key}: expected a text, got null; leave it out for its default")

    def plain(self, config: Namespace | None = None) -> dict[str, Any]:
        """The resolved config in plain types, as config.yaml and every checkpoint hold it."""
        text = self.parser.dump(self.config if config is None else config, skip_unset=False, format="json")
        content: dict[str, Any] = json.loads(text)
        return {key: value for key, value in content.items() if key not in NOT_SETTINGS}

    # -- building --------------------------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Build the data, then the model, whose vocabulary is the data's, then the callbacks."""
        builders = [
            (self._build_data, TextDataModule, False),
            (self._build_model, LanguageModel, False),
            (build, object, True),
        ]
        try:
            self.objects = self.parser.instantiate(self.config, instantiators=builders)
        except (TypeError, ValueError) as error:  # jsonargparse's, of a type that may be several.
            raise next((each for each in causes(error) if isinstance(each, UserError)), error) from error
        self.data, self.model = self.objects.data, self.objects.model
        self.callbacks = [
            *as_list(self.objects.trainer.callbacks),
            *(self.objects[key] for key in self.parser.callback_keys),
        ]

    def _build_data(self, kind: type[TextDataModule], *args: Any, **kwargs: Any) -> TextDataModule:
        """Data that encode with the checkpoint's or the base model's own tokenizer, if there is one."""
        data = kind(*args, **kwargs)
        if self.resume:
            entry = self.resume.entry
            data.use_tokenizer(entry["tokenizer"], entry["data"], entry.get("chat_template"))
        elif self.base:
            data.use_tokenizer(self.base.tokenizer.to_str(), chat_template=self.base.chat_template)
        return data

    def _build_model(self, kind: type[LanguageModel], *args: Any, **kwargs: Any) -> LanguageModel:
        """A model that starts from the base that is open; or as large as the checkpoint's, whose weights it gets."""
        kwargs["base"] = self.base
        if self.resume:
            # The link is to the tokenizer's entries, and a base's embedding may have more rows.
            kwargs["vocab_size"] = self.resume.entry["model"]["vocab_size"]
        model = kind(*args, **kwargs)
        if self.resume:
            model.base_identity = self.resume.entry.get("base")
        return model


def refuse_made_of_schedulers(given: Arguments) -> None:
    """Raise at a scheduler of torch whose parts need the optimizer as they are built, which no config can give them."""
    words = re.findall(r"--model\.schedule[\w.]*[= ](\S+)", " ".join(given.flags))
    words += [text for file in given.files for key, text in texts(file.content) if key.startswith("model.schedule")]
    if word := next((word for word in words if word.endswith(("SequentialLR", "ChainedScheduler"))), None):
        raise ConfigError(
            "model.schedule",
            f"model.schedule: {word.rpartition('.')[2]} is made of schedulers that need the optimizer as they are "
            "built, which a config cannot give them; use Linear or Cosine, which warm up, or a class of your own",
        )


def refuse_hidden(config: Namespace) -> None:
    """Raise at what a checkpoint's config, or a run's config.yaml, has without its secret: as it is it opens nothing.

    Not at a corpus: its text is found by its checksum, if it is in the cache.
    """
    if hidden := [key for key in hidden_keys(config.as_dict()) if key not in resuming.TEXT_OF_TRAINING]:
        raise UserError(f"{', '.join(hidden)}: what {HIDDEN} stands for is not stored; give the whole value again")


def build(kind: type[Any], *args: Any, **kwargs: Any) -> Any:
    """An object of a class that a config names; what a class of another package refuses is the user's input."""
    if kind.__module__.startswith("tinytf."):
        return kind(*args, **kwargs)
    with refusals_of(f"{kind.__module__}.{kind.__name__}"):
        return kind(*args, **kwargs)


class Description(CommandLine):
    """A command line that stops once its parser stands, for what describes it."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = Namespace(seed_everything=False)  # type: ignore[no-untyped-call]

    def instantiate_classes(self) -> None:
        """There is nothing to build from."""


def parser_of(command: str) -> LightningArgumentParser:
    """The parser of fit, validate, test or predict; nothing is parsed or built."""
    return Description(command, []).parser


def find_checkpoint(command: str, given: Arguments, required: bool) -> Path | None:
    """The checkpoint that a command starts from; None for a training run that starts fresh, and for a base model."""
    root = user_path(given.root or ROOT, what="checkpoint.dir")
    if given.ckpt_path == "":
        raise UserError("--ckpt_path is empty: give a file, best or last, or leave it out")
    if given.ckpt_path is None:
        if command != "fit" and required and "model.base" not in given.keys:
            raise UserError(
                f"tinytf {command} needs --ckpt_path: a file, a run's folder, best or last; or --model.base, for a "
                f"pretrained model as it is; see tinytf {command} --help"
            )
        return None
    if command == "fit" and given.ckpt_path == LAST:
        # Strictly the newest run: one that was killed before its first save starts again, not an older one.
        runs = run_dirs(root, given.name)
        # A name in a config file is that of the run which the file describes, and its first start finds none: one
        # command starts and restarts it. One in a flag, beside --ckpt_path last, picks a run that is there.
        if not runs and given.name and "--name" in {flag.partition("=")[0] for flag in given.flags}:
            refuse_unknown_name(
                given.name, root, "; to start one of that name, leave --ckpt_path out, or write the name into a config"
            )
        newest, place = last_intact(runs[-1]) if runs else None, root / (given.name or "")
        if newest is None:
            log.info("--ckpt_path last: no intact checkpoint yet in %s, starting fresh", runs[-1] if runs else place)
        return newest
    return resolve_checkpoint(given.ckpt_path, given.name, root, of_folder=LAST if command == "fit" else BEST)


def as_list(value: Any) -> list[Any]:
    """A value that may stand alone, be missing, or be several, as several."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
