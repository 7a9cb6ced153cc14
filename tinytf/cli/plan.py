"""`tinytf plan`: what a config needs of memory and time, on paper, before anything is trained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from lightning.pytorch.cli import instantiate_class
from tokenizers import Tokenizer

from tinytf.cli.config.parser import CommandLine
from tinytf.cli.console import quiet_libraries
from tinytf.cli.flags import CommandParser, positive
from tinytf.data.module import TextDataModule
from tinytf.errors import UserError
from tinytf.model import TransformerConfig
from tinytf.run.callbacks.throughput import flops_per_token
from tinytf.training.memory_estimate import Job, Strategy, largest_batch, memory, optimizer_needs
from tinytf.training.peak_flops import GPU_PEAKS, gpu_peak, peak_flops
from tinytf.training.trainer import accumulation

TOKENS_PER_PARAMETER = 20
"""Of a compute-optimal run, about (Hoffmann et al. 2022, arXiv:2203.15556, table 3)."""

USUAL_MFU = 0.4
"""What large runs report: 0.46 for PaLM (arXiv:2204.02311, table 3), 0.38 to 0.43 for Llama 3 (arXiv:2407.21783)."""

GIB = 2**30


class ConfigOnly(CommandLine):
    """The config of `tinytf fit`, read and checked as there; nothing is built from it."""

    def instantiate_classes(self) -> None:
        """A plan needs numbers alone."""


class ConfigForGpu(ConfigOnly):
    """The same for a GPU that is named: what `auto` means there, not on this machine."""

    def resolve_auto(self, config: Any) -> None:
        if config.trainer.precision == "auto":
            config.trainer.precision = "bf16-mixed"
        super().resolve_auto(config)


@dataclass(frozen=True)
class Machine:
    """What a plan is for.

    Args:
        device: its name.
        devices: how many.
        peak_flops: FLOP/s of one at most.
        mfu: the share of it that the model is expected to use.
        memory: bytes of one; None where it is not known.
    """

    device: str
    devices: int
    peak_flops: float
    mfu: float
    memory: float | None


def run(argv: Sequence[str]) -> int:
    """Read flags and config, print the plan on stdout.

    Returns:
        The exit code.
    """
    args, rest = parser().parse_known_args(argv)
    quiet_libraries()
    machine = machine_of(args)
    cli = (ConfigOnly if args.gpu is None else ConfigForGpu)("fit", rest)
    plan = make_plan(cli, machine, args.vocab_size)
    print(json.dumps(plan, indent=2) if args.json else report(plan))
    return 0


def parser() -> CommandParser:
    """The flags that `tinytf plan` has beside those of `tinytf fit`."""
    flags = CommandParser(
        prog="tinytf plan",
        usage="tinytf plan [--config FILE …] [--any.key value …] [options]",
        description="What a config needs: parameters, FLOPs, memory by part and strategy, time.\n"
        "--config, --ckpt_path and all keys are those of tinytf fit.",
    )
    flags.add_argument("--gpus", type=positive, default=1, metavar="N", help="devices (default 1)")
    flags.add_argument("--gpu", metavar="NAME", help=f"of this kind: {', '.join(GPU_PEAKS)}")
    flags.add_argument("--peak", type=above_zero, metavar="TFLOPS", help="or of so many TFLOP/s, dense, each")
    flags.add_argument("--memory", type=above_zero, metavar="GIB", help="GiB of each: names the largest micro-batch")
    flags.add_argument(
        "--mfu", type=share, default=USUAL_MFU, metavar="X", help=f"share of the peak used (default {USUAL_MFU})"
    )
    flags.add_argument(
        "--vocab_size", type=positive, metavar="N", help="entries of the vocabulary, where the text is not here"
    )
    flags.add_argument("--json", action="store_true", help="bytes, FLOPs and seconds as one JSON object")
    return flags


def above_zero(text: str) -> float:
    """A number above 0, as a flag's type."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def share(text: str) -> float:
    """A number above 0 and at most 1, as a flag's type."""
    value = above_zero(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} must be at most 1")
    return value


def machine_of(args: argparse.Namespace) -> Machine:
    """The devices asked for; this machine's where none are named."""
    if args.gpu is not None and args.peak is not None:
        raise UserError("--gpu and --peak both say how fast a device is: give one")
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = here or torch.device("cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this machine's {device.type}"
    size = args.memory * GIB if args.memory else None
    if args.peak is not None:
        return Machine("device", args.gpus, args.peak * 1e12, args.mfu, size)
    if args.gpu is not None:
        peak = gpu_peak(args.gpu)
        if peak is None:
            raise UserError(
                f"--gpu {args.gpu}: its peak is not known here; there are {', '.join(GPU_PEAKS)}, or --peak"
            )
        return Machine(args.gpu, args.gpus, peak, args.mfu, size)
    peak = peak_flops(device)
    if peak is None:
        raise UserError(f"the peak of {name} is not known: give --peak, in TFLOP/s, or --gpu")
    if size is None and device.type == "cuda":
        size = float(torch.cuda.get_device_properties(device).total_memory)
    return Machine(name, args.gpus, peak, args.mfu, size)


def vocabulary(cli: CommandLine, given: int | None) -> int:
    """Entries of the vocabulary; where only the text can tell (char), it is read."""
    if given is not None:
        return given
    if cli.resume:
        return int(Tokenizer.from_str(cli.resume.entry["tokenizer"]).get_vocab_size())
    settings = cli.config.data
    if settings.tokenizer == "bpe":
        return int(settings.vocab_size)
    return TextDataModule(**settings).vocab_size


def make_plan(cli: CommandLine, machine: Machine, vocab_size: int | None) -> dict[str, Any]:
    """All numbers, in bytes, FLOPs, tokens and seconds."""
    config = cli.config
    settings = {
        field.name: config.model[field.name] for field in fields(TransformerConfig) if field.name in config.model
    }
    shape = TransformerConfig(vocabulary(cli, vocab_size), **settings)
    asked, batch, devices = config.trainer.accumulate_grad_batches, config.data.batch_size, machine.devices
    whole = config.data.global_batch_size
    accumulate = asked or 1 if whole is None else accumulation(whole, batch, devices, asked)
    state, muon = optimizer_needs(lambda groups: instantiate_class((groups,), config.model.optimizer))
    job = Job(
        shape, batch, config.data.seq_len, config.trainer.precision, state, muon, accumulate > 1,
        checkpointing=config.model.activation_checkpointing,
    )  # fmt: skip
    flops = flops_per_token(shape, job.seq_len)
    speed = devices * machine.peak_flops * machine.mfu / flops
    return {
        "machine": asdict(machine),
        "model": {"parameters": shape.parameter_count, "flops_per_token": flops, **asdict(shape)},
        "precision": job.precision,
        "tokens_per_second": speed,
        "optimal_run": time_of(TOKENS_PER_PARAMETER * shape.parameter_count, flops, speed),
        "this_run": {
            "windows_per_step": batch * devices * accumulate,
            "accumulate_grad_batches": accumulate,
            "max_steps": config.trainer.max_steps,
            **time_of(config.trainer.max_steps * batch * devices * accumulate * job.seq_len, flops, speed),
        },
        "micro_batch": {"windows": batch, "seq_len": job.seq_len},
        "memory": {name: memory_of(spread(job, name, devices), machine.memory) for name in strategies(devices)},
    }


def strategies(devices: int) -> tuple[Strategy, ...]:
    """The strategies that a number of devices can choose between."""
    return ("ddp", "fsdp") if devices > 1 else ("one device",)


def spread(job: Job, strategy: Strategy, devices: int) -> Job:
    """The same work on many devices."""
    return replace(job, strategy=strategy, devices=devices)


def memory_of(job: Job, limit: float | None) -> dict[str, Any]:
    """Bytes by part, and the largest micro-batch where the memory of a device is known."""
    found = asdict(memory(job))
    return found if limit is None else {**found, "largest_micro_batch": largest_batch(job, limit)}


def time_of(tokens: int, flops: float, speed: float) -> dict[str, float]:
    """Tokens, FLOPs and seconds of training on so many tokens."""
    return {"tokens": tokens, "flops": tokens * flops, "seconds": tokens / speed}


# -- the screen ----------------------------------------------------------------------------------------------------

COLUMNS = ("weights", "gradients", "optimizer", "gathered", "activations", "logits", "workspace", "peak")


def report(plan: dict[str, Any]) -> str:
    """The plan as lines for a person."""
    model, machine, run = plan["model"], plan["machine"], plan["this_run"]
    batch = plan["micro_batch"]
    lines = [
        f"model        {short(model['parameters'])} parameters: {model['n_layers']} layers, {model['d_model']} wide, "
        f"vocabulary {model['vocab_size']:,}",
        f"compute      {model['flops_per_token']:.3g} FLOP a token, forward and backward; context {batch['seq_len']}",
        f"machine      {machine['devices']} x {machine['device']}, {machine['peak_flops'] / 1e12:.4g} TFLOP/s each; "
        f"at an MFU of {machine['mfu']:g}: {short(plan['tokens_per_second'])} tokens/s",
        f"optimal run  {short(plan['optimal_run']['tokens'])} tokens ({TOKENS_PER_PARAMETER} a parameter), "
        f"{plan['optimal_run']['flops']:.3g} FLOP: {duration(plan['optimal_run']['seconds'])}",
        f"this run     {run['max_steps']:,} steps of {run['windows_per_step']:,} windows, "
        f"{short(run['tokens'])} tokens: {duration(run['seconds'])}",
        "",
        f"GiB of a device, {plan['precision']}, micro-batches of {batch['windows']} x {batch['seq_len']} tokens",
        " " * 11 + "".join(f"{name:>12}" for name in COLUMNS) + "  when",
    ]
    for name, parts in plan["memory"].items():
        lines.append(
            f"{name:<11}" + "".join(f"{parts[part] / GIB:>12.3g}" for part in COLUMNS) + f"  {parts['moment']}"
        )
    if machine["memory"] is not None:
        fits = ", ".join(f"{name} {parts['largest_micro_batch']}" for name, parts in plan["memory"].items())
        lines += ["", f"largest micro-batch in {machine['memory'] / GIB:g} GiB, in windows: {fits}"]
    return "\n".join(lines)


def short(number: float) -> str:
    """1.23B, 45.6M, 7.89k."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    for size, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} seconds"
