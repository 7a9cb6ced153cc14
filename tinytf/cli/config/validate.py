"""Values that the parser accepts and that nothing can be built from, refused before anything is built."""

from __future__ import annotations

import contextlib
import math
import os
import re
import traceback
from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_type_hints

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import instantiate_class
from lightning.pytorch.trainer.connectors import checkpoint_connector
from torch.optim.lr_scheduler import LRScheduler

from tinytf.cli.config.keys import shown
from tinytf.data.datamodule import TextDataModule
from tinytf.errors import RunError, UserError, require_at_least
from tinytf.export.formats import choose
from tinytf.model import TransformerConfig
from tinytf.model.config import ConfigurationError
from tinytf.run.config import CheckpointConfig
from tinytf.run.loggers import require_trackers
from tinytf.run.run import OptionalCallbacks
from tinytf.training.hardware import training_device
from tinytf.training.optim.schedules import Schedule
from tinytf.training.refused_callbacks import refuse_callbacks
from tinytf.utils.files import shorten, user_path
from tinytf.utils.machine import usable_cores, usable_memory
from tinytf.utils.text import flatten
from tinytf.weights.adapter import AdapterConfig, refuse_adapter_with, require_peft

LARGEST = 2**53
"""Above it floats skip integers, as in a schedule's share of steps; above 2**63 torch raises OverflowError."""

UNPORTABLE = re.compile(r'[\\/:*?"<>|]|[ .]$')
DEVICES = re.compile(r"CON|PRN|AUX|NUL|(COM|LPT)[0-9¹²³]", re.IGNORECASE)
"""What a file's name may not have, and may not be before its first dot, on Windows: runs are copied to there too."""

STEPS = ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches")


def validate(command: str, config: Any) -> None:
    """Raise UserError at the first value of a parsed config that is out of range or contradicts another.

    Args:
        command: fit trains, and needs an optimizer, a run directory and trackers; the others do not.
        config: after `auto` was resolved or before; it is not changed.
    """
    check_numbers(config)
    check_model(config.model)
    if config.model.adapter:
        rank = AdapterConfig(**config.model.adapter).rank
        if rank > config.model.d_model:
            raise UserError(
                f"model.adapter.rank is {rank}, but must be at most model.d_model {config.model.d_model}: beyond it an "
                "adapter is larger than the matrices that it is beside"
            )
        refuse_adapter_with(base=config.model.base is not None, freeze=config.model.freeze)
        require_peft()
        if config.trainer.strategy == "fsdp2":
            raise UserError("trainer.strategy fsdp2 shards no adapter; use ddp: of an adapter there is little to send")
    if config.data.seq_len > config.model.max_seq_len:
        raise UserError(
            f"data.seq_len {config.data.seq_len} is longer than model.max_seq_len {config.model.max_seq_len}"
        )
    TextDataModule(**config.data)
    CheckpointConfig(**config.checkpoint)
    require_at_least("trainer", **{key: (config.trainer[key], 1) for key in STEPS})
    check_ranges(config)
    check_device(config.trainer.accelerator)
    callbacks = config.trainer.callbacks or []
    refuse_callbacks(
        import_class(each.class_path) for each in (callbacks if isinstance(callbacks, list) else [callbacks])
    )
    for name, callback in get_type_hints(OptionalCallbacks).items():
        callback(**config.tracking[name])
    if command == "fit":
        for other in ("test", "predict"):
            if config.trainer[f"limit_{other}_batches"] is not None:
                raise UserError(f"trainer.limit_{other}_batches: fit has no such batches; give it to tinytf {other}")
        check_optimizer(config.model.optimizer, config.model.schedule, config.trainer.max_steps)
        check_run_dir(config.name, config.checkpoint.dir)
        require_trackers(config.tracking.wandb, config.tracking.mlflow)
        check_formats(config.export)


@contextlib.contextmanager
def refusals_of(key: str) -> Iterator[None]:
    """A library's refusal of a value, whatever it raises, as one line that names the key."""
    try:
        yield
    except (UserError, RunError, MemoryError, OSError):
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{key}: {shorten(text, 400)}") from error


@contextlib.contextmanager
def refusals_of_checkpoint(path: str | None) -> Iterator[None]:
    """What Lightning, torch or a callback raises as it restores a checkpoint, as one line that names the file.

    No hook of Lightning surrounds that: an error is of it if its traceback leads through the functions that restore.
    What a callback finds missing before the first step (a logger, a package) is one line too.
    """
    try:
        yield
    except (UserError, RunError, MemoryError, OSError):
        raise
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise UserError(f"trainer: {shorten(' '.join(str(error).split()), 400)}") from error
    except Exception as error:
        calls = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
        there = [code.co_name for code in calls if code.co_filename == checkpoint_connector.__file__]
        restoring = [name for name in there if re.match("_?restore|resume", name)]
        if path is None or not restoring:
            raise
        text = " ".join(str(error).split())
        problem = f"it cannot be restored ({type(error).__name__}: {shorten(text, 400)})"
        raise UserError(f"checkpoint {path}: {problem}") from error


def check_numbers(config: Any) -> None:
    """Refuse numbers that nothing can be computed with."""
    for key, value in flatten(config.as_dict()):
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) >= LARGEST:
                raise UserError(f"{key} is {shorten(number, 40)}, but must be below 2**53")
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{key.replace('.init_args', '')} is {number}, but must be finite")


def check_machine(config: Any) -> None:
    """Refuse, before anything is started, more processes than this machine can be meant to run, or a larger model."""
    check_processes(config)
    check_gpus(config.trainer)
    check_memory(config)


def check_gpus(trainer: Any) -> None:
    """Refuse more GPUs than there are, or one by a number that none has."""
    devices = str(trainer.devices).strip("[]")
    if training_device(str(trainer.accelerator)) != "cuda" or not re.fullmatch(r"[\d\s,]+", devices):
        return
    numbers, here = [int(number) for number in re.findall(r"\d+", devices)], torch.cuda.device_count()
    # Several are named by their numbers, as in Lightning: 2 is two GPUs, "2," and [2] the third.
    named = isinstance(trainer.devices, list) or "," in devices
    if (max(numbers) >= here) if named else (numbers[0] > here):
        there = f"{here} GPU{'' if here == 1 else 's'}"
        raise UserError(f"trainer.devices is {trainer.devices}, but this machine has {there}, numbered from 0")


def check_processes(config: Any) -> None:
    data, devices, cores = config.data, config.trainer.devices, usable_cores()
    if isinstance(devices, list) and len(set(devices)) < len(devices):
        raise UserError(f"trainer.devices is {devices}, but each device may be named once")
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else 1
    most = max(32, 16 * cores)
    for key, processes in (
        ("trainer.devices", count),
        ("data.num_workers", count * data.num_workers),
        ("data.prepare_processes", data.prepare_processes),
    ):
        if processes > most:
            raise UserError(
                f"{key} is {config[key]}: that is {processes:,} processes, and this machine of {cores} cores starts at "
                f"most {most}"
            )


def check_memory(config: Any) -> None:
    """Refuse a model whose weights and gradients alone are more than the memory, whatever the text."""
    model = TransformerConfig.from_mapping({**config.model, "vocab_size": 1})
    size = 2 if str(config.trainer.precision) in ("bf16-true", "16-true") else 4
    # Each block keeps at least its input, in the layout of the weights, for the backward.
    kept = config.data.batch_size * config.data.seq_len * model.d_model * model.n_layers
    needed = size * (2 * model.parameter_count + kept) + 8 * model.max_seq_len * model.head_size
    on_gpu = training_device(str(config.trainer.accelerator)) == "cuda"
    # Sharded over GPUs, a model may be larger than one; over processes of a CPU, the memory is the same.
    here = sum_of_gpu_memory() * int(config.trainer.num_nodes) if on_gpu else usable_memory()
    if here is not None and needed > here:
        raise UserError(
            f"model.d_model {model.d_model}, model.n_layers {model.n_layers}, model.max_seq_len {model.max_seq_len}, "
            f"data.batch_size {config.data.batch_size}: {model.parameter_count:,} parameters need more than "
            f"{needed / 2**30:,.1f} GiB, and there are {here / 2**30:,.1f}; tinytf plan says what fits"
        )


def sum_of_gpu_memory() -> int:
    return sum(torch.cuda.get_device_properties(gpu).total_memory for gpu in range(torch.cuda.device_count()))


def check_model(model: Any) -> None:
    """Refuse a model's numbers that do not fit together."""
    try:
        TransformerConfig.from_mapping({**model, "vocab_size": 1})
    except ConfigurationError as error:
        raise UserError(f"model.{error.problems[0]}") from None


def check_optimizer(given: Any, schedule: Any, max_steps: int) -> None:
    """Refuse an optimizer that cannot be built for matrices and vectors in groups like the model's, or its schedule."""
    sizes = {"matrices": (2, 2), "embedding": (2, 2), "norm": (2,)}
    parameters = {name: torch.nn.Parameter(torch.zeros(size)) for name, size in sizes.items()}
    for key, value in (("model.optimizer", given), ("model.schedule", schedule)):
        if not hasattr(value, "class_path"):  # The parser takes a function too, whose arguments no config can give.
            raise UserError(f"{key}: expected a class, got {shown(value)}")
    groups = [{"name": name, "params": [parameter]} for name, parameter in parameters.items()]
    with refusals_of(f"model.optimizer: {given.class_path.rpartition('.')[2]}"):
        optimizer = instantiate_class((groups,), given)
        for parameter in parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # SparseAdam and LBFGS refuse dense gradients, and a step without a closure, only here.
    kind = schedule.class_path.rpartition(".")[2]
    with refusals_of(f"model.schedule: {kind}"):
        built = instantiate_class(() if is_ours(schedule.class_path) else (optimizer,), schedule)
        steps = getattr(built, "total_steps", max_steps)  # OneCycleLR's: at the step after it, it raises.
        if isinstance(built, LRScheduler):
            built.state_dict()
    if steps < max_steps:
        raise UserError(f"model.schedule: {kind} ends at step {steps}, and trainer.max_steps is {max_steps}")


def is_ours(schedule: str) -> bool:
    """Whether a schedule's class is a `Schedule`; else it is a scheduler of torch, and takes the optimizer."""
    return issubclass(import_class(schedule), Schedule)


def import_class(path: str) -> type:
    """The class that a parsed config names."""
    module, _, name = path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def check_ranges(config: Any) -> None:
    """Numbers that Lightning takes as they come, or ends in a traceback for."""
    least = {
        "trainer.min_steps": 0,
        "trainer.gradient_clip_val": 0,
        "trainer.num_sanity_val_steps": -1,
        "data.vocab_size": 1,
    }
    for key, minimum in least.items():
        if config[key] is not None and config[key] < minimum:
            raise UserError(f"{key} is {config[key]}, but must be at least {minimum}")
    if not 0 <= config.seed_everything < 2**32:
        raise UserError(f"seed_everything is {config.seed_everything}, but must be at least 0 and below 2**32")


def check_run_dir(name: str, given: str) -> None:
    """Refuse a place where no run directory can be made."""
    device = DEVICES.fullmatch(name.partition(".")[0].rstrip())
    if device:
        raise UserError(f"name {name!r}: on Windows no folder is called so, as {device[0]} is a device: give another")
    if not name or UNPORTABLE.search(name) or name != name.strip() or not name.isprintable():
        raise UserError(
            f"name {name!r}: the run directory is called so, and it is not a folder's name on every system: give one "
            'of printable characters, without \\ / : * ? " < > |, without spaces around it or a dot at its end'
        )
    root = user_path(given, what="checkpoint.dir")
    existing = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"checkpoint.dir {root}: {existing} is a file, and runs need a folder; give another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"checkpoint.dir {root}: {existing} cannot be written to; give another folder")


def check_formats(export: Any) -> None:
    """Refuse formats that do not exist, or whose packages are missing if they are to be exported at the end."""
    try:
        choose(export.formats, installed=export.at_end)
    except UserError as error:
        raise UserError(f"export.formats: {error}") from None


def check_device(name: Any) -> None:
    """Refuse hardware that this machine lacks, by the name that asks for it."""
    if not isinstance(name, str) or name == "auto":
        return
    known = AcceleratorRegistry.available_accelerators()
    if name != "gpu" and name not in known:
        raise UserError(f"trainer.accelerator: expected auto or gpu or {' or '.join(sorted(known))}, got {name}")
    asked = ("cuda", "mps") if name == "gpu" else (name,)
    if not any(AcceleratorRegistry[each]["accelerator"].is_available() for each in asked):
        raise UserError(
            f"trainer.accelerator {name}: this machine has none that PyTorch {torch.__version__} can use; "
            "leave it at auto, or give cpu"
        )
