"""`tinytf plan`: what a config needs of memory and time, computed before anything is trained."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from lightning.pytorch.cli import instantiate_class

from tinytf.cli.config.base import take_base
from tinytf.cli.config.files import Arguments
from tinytf.cli.config.flags import CommandParser, above_zero, positive, share
from tinytf.cli.config.parser import CommandLine
from tinytf.cli.config.resume import look_up
from tinytf.cli.main import quiet_libraries
from tinytf.data.config import OF_BASE, cache_root
from tinytf.data.datamodule import TextDataModule
from tinytf.data.sources import find_files
from tinytf.data.sources.builtin import BUILTIN, builtin_text
from tinytf.errors import UserError
from tinytf.model import TransformerConfig
from tinytf.training.hardware import training_device
from tinytf.training.memory_estimate import StepSpec, Strategy, estimate, largest_batch, optimizer_state, trained_in
from tinytf.training.peak_flops import KNOWN_GPUS, gpu_peak, peak_flops
from tinytf.training.trainer import accumulation, describe_readings, overfitting
from tinytf.utils.text import table
from tinytf.weights.adapter import AdapterConfig

TOKENS_PER_PARAMETER = 20
"""Of a compute-optimal run, about (Hoffmann et al. 2022, arXiv:2203.15556, table 3)."""

USUAL_MFU = 0.4
"""What large runs report: 0.46 for PaLM (arXiv:2204.02311, table 3), 0.38 to 0.43 for Llama 3 (arXiv:2407.21783)."""

BYTES_PER_TOKEN = 4
"""Of byte-level BPE, about: 3.4 of Shakespeare with 8,192 entries, 4.5 of English web text with GPT-2's 50,257."""

GIB = 2**30

log = logging.getLogger(__name__)


class DryRunCLI(CommandLine):
    """The config of `tinytf fit`, read and checked as there, with ``gpu`` as on a GPU; nothing is built from it."""

    def __init__(self, argv: list[str], gpu: bool) -> None:
        self.gpu = gpu
        super().__init__("fit", argv)

    def instantiate_classes(self) -> None:
        """A plan needs numbers alone."""

    def take_base(self, config: Any, given: Arguments) -> None:
        """A plan needs no weights."""
        if self.resume is None:
            self.base = take_base(config, given, self.parser.get_defaults(), weights=False)

    def check_machine(self, config: Any) -> None:
        """A plan is for any machine."""

    def resolve_auto(self, config: Any) -> None:
        if self.gpu and config.trainer.precision == "auto":
            config.trainer.precision = "bf16-mixed"
        super().resolve_auto(config)


@dataclass(frozen=True)
class Machine:
    """What a plan is for.

    Args:
        device: its name.
        kind: cpu, cuda or mps.
        devices: how many.
        peak_flops: FLOP/s of one at most.
        mfu: the share of it that the model is expected to use.
        memory: bytes of one; None if not known.
    """

    device: str
    kind: str
    devices: int
    peak_flops: float
    mfu: float
    memory: float | None


def run(argv: Sequence[str]) -> int:
    """Read flags and config, print the plan on stdout, return the exit code."""
    args, rest = parser().parse_known_args(argv)
    quiet_libraries()
    machine = find_machine(args)
    plan = make_plan(DryRunCLI(rest, gpu=args.gpu is not None), machine, args.vocab_size)
    print(json.dumps(plan, indent=2) if args.json else format_plan(plan, args.verbose))
    return 0


def parser() -> CommandParser:
    """The flags of `tinytf plan`, in addition to those of `tinytf fit`."""
    flags = CommandParser(
        prog="tinytf plan",
        usage="tinytf plan [--config FILE …] [--any.key value …] [options]",
        description="What a config needs: parameters, FLOPs, memory by part and strategy, time.\n"
        "--config, --ckpt_path and all keys are those of tinytf fit.",
    )
    flags.add_argument("--gpus", type=positive, default=1, metavar="N", help="devices (default 1)")
    flags.add_argument("--gpu", metavar="NAME", help=f"of this kind: {', '.join(KNOWN_GPUS)}")
    flags.add_argument("--tflops", type=above_zero, metavar="X", help="or of X TFLOP/s each, in dense bfloat16")
    flags.add_argument("--memory", type=above_zero, metavar="GIB", help="GiB of each: names the largest micro-batch")
    flags.add_argument("--mfu", type=share, default=USUAL_MFU, metavar="X", help="share of the peak used (%(default)s)")
    flags.add_argument("--vocab_size", type=positive, metavar="N", help="vocabulary size, if the text is not here")
    flags.add_argument("--verbose", action="store_true", help="list every tensor of the memory estimate")
    flags.add_argument("--json", action="store_true", help="bytes, FLOPs and seconds as one JSON object")
    return flags


def find_machine(args: argparse.Namespace) -> Machine:
    """The devices that the flags name; by default this machine's."""
    memory = args.memory * GIB if args.memory else None
    if args.gpu is not None and args.tflops is not None:
        raise UserError("--gpu and --tflops both say how fast a device is: give one")
    if args.tflops is not None:
        return Machine("device", "cuda", args.gpus, args.tflops * 1e12, args.mfu, memory)
    if args.gpu is not None:
        peak = gpu_peak(args.gpu)
        if peak is None:
            if "laptop" in args.gpu.lower():
                why = "the clock of a laptop's GPU is its maker's choice"
            else:
                near = difflib.get_close_matches(args.gpu.upper(), KNOWN_GPUS, n=3, cutoff=0.5)
                why = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(KNOWN_GPUS)}"
            raise UserError(f"--gpu {args.gpu}: its peak is not known ({why}); give it as --tflops, in dense bfloat16")
        return Machine(args.gpu, "cuda", args.gpus, peak, args.mfu, memory)
    device = torch.device(training_device("auto"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this machine's {device.type}"
    peak = peak_flops(device)
    if peak is None:
        raise UserError(f"the peak of {name} is not known: give --tflops, or --gpu")
    if memory is None and device.type == "cuda":
        memory = float(torch.cuda.get_device_properties(device).total_memory)
    return Machine(name, device.type, args.gpus, peak, args.mfu, memory)


def find_vocab_size(cli: CommandLine) -> int:
    """Entries of the vocabulary; if only the text can tell (char), it is read."""
    if cli.resume:
        return TransformerConfig.from_mapping(cli.resume.entry["model"]).vocab_size
    if cli.base:
        return cli.base.config.vocab_size
    data = cli.config.data
    return int(data.vocab_size) if data.tokenizer == "bpe" else TextDataModule(**data).vocab_size


def find_train_text(cli: CommandLine) -> dict[str, Any]:
    """The training text: its tokens (None if it is not on this machine), whether that is an estimate, and the windows
    that hold it once; of prompts and completions the examples, and the tokens that are learned."""
    data = cli.config.data
    if cli.resume:
        told = {key: look_up(cli.resume.entry, f"data.{key}.train")
                for key in ("split_tokens", "split_examples", "split_learned_tokens")}  # fmt: skip
        tokens, *examples = (value if isinstance(value, int) and value > 0 else None for value in told.values())
        return train_text(tokens, data.seq_len, examples=examples if all(examples) else None)
    if data.tokenizer not in ("bpe", OF_BASE):
        module = TextDataModule(**data)
        text = train_text(len(module.split("train")), data.seq_len, examples=module.training_examples)
        return {**text, "windows": module.windows_per_epoch}
    # Not tokenized for this: training a tokenizer on 10 MB takes ten seconds, and plan answers at once.
    try:
        if data.corpus in BUILTIN:
            size = len(builtin_text(data.corpus).encode())
        else:
            files = [] if "://" in data.corpus else find_files(data.corpus, cache_root(data.cache_dir))
            packed = any(file.is_compressed or file.kind == "parquet" for file in files)
            size = 0 if packed else sum(file.size for file in files)
    except UserError as error:
        log.info("how often the text is read is not known: %s", error)
        size = 0
    share = 1 - data.test_fraction - (0 if data.val_corpus else data.val_fraction)
    return train_text(int(share * size / BYTES_PER_TOKEN) or None, data.seq_len, estimated=True)


def train_text(
    tokens: int | None, seq_len: int, estimated: bool = False, examples: Sequence[int | None] | None = None
) -> dict[str, Any]:
    """What `find_train_text` finds, of tokens that fill their windows."""
    return {"tokens": tokens, "estimated": estimated, "windows": tokens / seq_len if tokens else None,
            "examples": examples}  # fmt: skip


def make_plan(cli: CommandLine, machine: Machine, vocab_size: int | None) -> dict[str, Any]:
    """All numbers, in bytes, FLOPs, tokens and seconds."""
    data, trainer, devices = cli.config.data, cli.config.trainer, machine.devices
    config = TransformerConfig.from_mapping({**cli.config.model, "vocab_size": vocab_size or find_vocab_size(cli)})
    accumulate = trainer.accumulate_grad_batches or 1
    if data.global_batch_size is not None:
        accumulate = accumulation(data.global_batch_size, data.batch_size, devices, trainer.accumulate_grad_batches)
    text = train_text(None, data.seq_len, estimated=True) if vocab_size else find_train_text(cli)
    state, muon = optimizer_state(lambda groups: instantiate_class((groups,), cli.config.model.optimizer))
    step = StepSpec(
        config, data.batch_size, data.seq_len, trainer.precision, state, muon, accumulate > 1,
        devices=devices, checkpointing=cli.config.model.activation_checkpointing,
        device=machine.kind, freeze=tuple(cli.config.model.freeze or ()),
        adapter=AdapterConfig(**cli.config.model.adapter) if cli.config.model.adapter else None,
    )  # fmt: skip
    trained = trained_in(step)
    flops = trained.flops
    speed = devices * machine.peak_flops * machine.mfu / flops
    windows = data.batch_size * devices * accumulate

    run_tokens = trainer.max_steps * windows * data.seq_len

    def cost(tokens: int) -> dict[str, float]:
        return {"tokens": tokens, "flops": tokens * flops, "seconds": tokens / speed}

    strategies: tuple[Strategy, ...] = ("ddp", "fsdp2") if devices > 1 else ("one device",)
    return {
        "machine": asdict(machine),
        "model": {
            "parameters": config.parameter_count + trained.added,
            "trained": trained.entries,
            "flops_per_token": flops,
            **asdict(config),
        },
        "precision": step.precision,
        "tokens_per_second": speed,
        "optimal_run": cost(TOKENS_PER_PARAMETER * config.parameter_count),
        "this_run": {
            "windows_per_step": windows,
            "accumulate_grad_batches": accumulate,
            "max_steps": trainer.max_steps,
            **cost(run_tokens),
        },
        "text": {**text, "readings": trainer.max_steps * windows / text["windows"] if text["windows"] else None},
        "micro_batch": {"windows": data.batch_size, "seq_len": data.seq_len},
        "memory": {name: plan_memory(replace(step, strategy=name), machine.memory) for name in strategies},
    }


def plan_memory(step: StepSpec, limit: float | None) -> dict[str, Any]:
    """Bytes by part and by tensor, and the largest micro-batch if the memory of a device is known."""
    found = estimate(step)
    largest = {} if limit is None else {"largest_micro_batch": largest_batch(step, limit)}
    return {**asdict(found), **largest, "rows": [{**asdict(row), "bytes": row.bytes} for row in found.rows]}


# -- the screen ----------------------------------------------------------------------------------------------------

COLUMNS = ("weights", "gradients", "optimizer", "gathered", "activations", "logits", "workspace", "peak")


def format_plan(plan: dict[str, Any], verbose: bool) -> str:
    """The plan as lines for a person; if ``verbose``, with the tensors of each strategy."""
    model, machine, run, batch = plan["model"], plan["machine"], plan["this_run"], plan["micro_batch"]
    optimal, memory = plan["optimal_run"], plan["memory"]
    lines = [
        f"model        {short(model['parameters'])} parameters{of_which(model)}: {model['n_layers']} layers, "
        f"{model['d_model']} wide, vocabulary {model['vocab_size']:,}",
        f"compute      {model['flops_per_token']:.3g} FLOP per token, forward and backward; context {batch['seq_len']}",
        f"machine      {machine['devices']} x {machine['device']}, {machine['peak_flops'] / 1e12:.4g} TFLOP/s each; "
        f"at an MFU of {machine['mfu']:g}: {short(plan['tokens_per_second'])} tokens/s",
        f"optimal run  {short(optimal['tokens'])} tokens ({TOKENS_PER_PARAMETER} per parameter), "
        f"{optimal['flops']:.3g} FLOP: {duration(optimal['seconds'])}",
        f"this run     {run['max_steps']:,} steps of {run['windows_per_step']:,} windows, "
        f"{short(run['tokens'])} tokens: {duration(run['seconds'])}",
        *text_lines(plan["text"], run["max_steps"]),
        "",
        f"GiB per device, {plan['precision']}, micro-batches of {batch['windows']} x {batch['seq_len']} tokens",
    ]
    rows = [("", *COLUMNS, "when")]
    for name, parts in memory.items():
        rows.append((name, *(f"{parts[part] / GIB:.3g}" for part in COLUMNS), parts["peak_phase"]))
    lines.append(table(rows, right=range(1, 1 + len(COLUMNS))))
    if machine["memory"] is not None:
        fits = ", ".join(f"{name} {parts['largest_micro_batch']}" for name, parts in memory.items())
        lines += ["", f"largest micro-batch in {machine['memory'] / GIB:g} GiB, in windows: {fits}"]
    for name, parts in memory.items() if verbose else ():
        cells = [("part", "tensor", "elements", "bytes", "kept by")]
        for row in parts["rows"]:
            numbers = (f"{row[key]:,.0f}" for key in ("elements", "bytes"))
            cells.append((row["part"], row["tensor"], *numbers, row["kept_by"]))
        lines += ["", f"tensors per device, {name}", table(cells, right=(2, 3))]
    return "\n".join(lines)


def of_which(model: dict[str, Any]) -> str:
    """How many of the parameters are trained, if not all are."""
    return "" if model["trained"] == model["parameters"] else f", {short(model['trained'])} of them trained"


def text_lines(text: dict[str, Any], max_steps: int) -> list[str]:
    """How often the run reads its text, and what that does to the model."""
    if text["tokens"] is None:
        return []
    how = f", at about {BYTES_PER_TOKEN} bytes per token" if text["estimated"] else ""
    line = f"text         {describe_readings(text['tokens'], text['readings'], text['examples'])}{how}"
    warning = overfitting(text["readings"], max_steps)
    return [line, *([f"{'':13}warning: {warning}"] if warning else [])]


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
