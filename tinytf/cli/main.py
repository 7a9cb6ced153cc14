"""The command `tinytf`: finds the asked command, and turns known failures into one line and an exit code.

Results go to stdout, in UTF-8 whatever the locale, so that JSON is JSON; everything else goes to stderr, where no text
of a file does anything to the terminal. Nothing heavy is imported before the command is known: --help answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from tinytf import __version__
from tinytf.errors import RunError, UserError
from tinytf.utils.files import is_disk_full, reason, shorten
from tinytf.utils.machine import usable_cores
from tinytf.utils.text import printable, public

COMMANDS = {
    "fit": ("fit:run", "train, or resume with --ckpt_path last"),
    "validate": ("evaluate:validate", "evaluate a checkpoint on the validation split"),
    "test": ("evaluate:test", "evaluate a checkpoint on the test split"),
    "predict": ("evaluate:predict", "the loss of each window of the validation split, as JSON lines"),
    "prepare": ("prepare:run", "tokenize a corpus ahead of fit"),
    "generate": ("generate:run", "write text with a checkpoint"),
    "serve": ("serve:run", "serve a page and an OpenAI-compatible API"),
    "inspect": ("inspect:run", "what a checkpoint is, or how two differ"),
    "export": ("export:run", "export a checkpoint and measure each file against it"),
    "verify": ("verify:run", "measure an export again"),
    "plan": ("plan:run", "what a config needs of memory and time, before anything is trained"),
    "runs": ("runs:run", "list the runs"),
    "sync": ("sync:run", "send a run to its trackers: what they did not get during the training"),
    "config-schema": ("config.schema:run", "print a JSON Schema of the YAML files, for editors"),
    "completion": ("config.completion:run", "print the completions of bash or zsh"),
}
"""Of each command: the module in this folder and its function, and what it does in a line."""

OTHER_NAMES = {
    "fit": "train training pretrain run start",
    "fit --config … --model.base PATH": "finetune fine_tune tune",
    "fit --ckpt_path last": "resume continue",
    "generate": "sample complete infer inference",
    "serve": "server api web ui playground",
    "generate --interactive": "chat talk repl",
    "validate": "eval evaluate val",
    "export": "convert save",
    "prepare": "tokenize preprocess",
    "plan": "estimate size",
    "runs": "ls list ps status",
    "inspect": "info show diff",
    "--help": "help",
    "--version": "version",
}
"""Other programs' names for a command: named in the error, never run."""

LONGEST = 2_000
"""Characters of an error: what it quotes may be of any length, and its end says what to do."""

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")


def usage() -> str:
    """What --help prints."""
    lines = [f"  {name:<13} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        (
            "usage: tinytf <command> [options]      tinytf <command> --help      tinytf --version",
            "",
            "Text in, a small transformer language model out.",
            "",
            *lines,
            "",
            "first run: tinytf fit --config tiny",
        )
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 1 a failure, 2 wrong input. A signal ends in 128 + its number, and a bug of ours in
        its traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    prepare_streams()
    # A run goes on and saves, whoever looked at it: `tinytf fit | head`.
    stdout, stderr = Stream(sys.stdout, lenient=argv[:1] == ["fit"]), Stream(sys.stderr, lenient=True)
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        log_to_stderr()
        try:
            code = dispatch(argv)
            sys.stdout.flush()
            return code
        except UserError as error:
            for problem in error.problems:
                write_error(problem)
            return 2
        except RunError as error:
            write_error(str(error))
            return 1
        except KeyboardInterrupt:
            return 130
        except OutputError as error:
            if isinstance(error.__cause__, BrokenPipeError):  # The reader has seen enough, as head has.
                return 141  # 128 + SIGPIPE, a name that Windows lacks.
            write_error(str(error))
            return 1


def write_error(problem: str) -> None:
    sys.stderr.write(f"tinytf: error: {shorten(printable(public(problem)), LONGEST)}\n")


def dispatch(argv: list[str]) -> int:
    """Run the command that the arguments name, and return its exit code."""
    if argv in ([], ["-h"], ["--help"]):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"tinytf {__version__}")
        return 0
    if argv[0] in ("-h", "--help") and argv[1] in COMMANDS:
        argv = [argv[1], "--help", *argv[2:]]
    command = argv[0]
    if command not in COMMANDS:
        word = command.lower().replace("-", "_")
        near = [name for name, words in OTHER_NAMES.items() if word in words.split()]
        near = near or difflib.get_close_matches(word, COMMANDS, n=1)
        hint = f"did you mean tinytf {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {command!r}; {hint}")
    module, _, function = COMMANDS[command][0].partition(":")
    return int(getattr(import_module(f"tinytf.cli.{module}"), function)(argv[1:]))


# -- stdout and stderr ---------------------------------------------------------------------------------------------


class OutputError(Exception):
    """What a command has found out cannot be written to stdout."""


class Stream:
    """stdout or stderr, which may be lost: nobody reads any more, or the disk is full.

    Args:
        stream: the one that Python opened.
        lenient: go on without; else OutputError is raised.
    """

    def __init__(self, stream: Any, lenient: bool) -> None:
        self._stream = stream
        self._lenient = lenient

    def write(self, text: str) -> int:
        with self._losses():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._losses():
            self._stream.flush()

    @contextlib.contextmanager
    def _losses(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is left in the buffer goes to /dev/null, or flushing it at exit would fail once more.
            with contextlib.suppress(OSError, ValueError):  # A stream of a test or a notebook has no descriptor.
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if not self._lenient:
                raise OutputError(f"stdout: {reason(error)}") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare_streams() -> None:
    """Make stdout UTF-8; where stdout or stderr is closed, as `>&-` leaves it, put /dev/null in its place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - for as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names that are not UTF-8 have lone surrogates in them, which no encoding has.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


class OneLineFormatter(logging.Formatter):
    """A message as one line that does nothing to a terminal, and without what may be a credential of an address."""

    def format(self, record: logging.LogRecord) -> str:
        line = printable(str(public(record.getMessage())))
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def log_to_stderr() -> None:
    """Show what tinytf logs: without a handler, Python writes it as it is, a stranger's file names too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLineFormatter())
    logging.getLogger("tinytf").handlers[:] = [handler]


def quiet_libraries() -> None:
    """Set up logging and warnings for a command; a test or a notebook that imports tinytf is left alone."""
    log_to_stderr()
    own = logging.getLogger("tinytf")
    own.setLevel(logging.INFO)
    own.propagate = False
    threading.excepthook = _thread_failed
    # Tips, and the devices found, which the first line of a run says too.
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # But a callback or a profiler that the user added, as ModelSummary or Timer, says what it was added for.
    for name in ("lightning.pytorch.callbacks", "lightning.pytorch.profilers", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(of_callback)
    # On how gloo and two dimensions of parallelism exchange shards, once a process.
    for name in ("torch.distributed.tensor._collective_utils", "torch.distributed.tensor._redistribute"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",  # Reading a batch takes microseconds.
        ".*LeafSpec.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*Checkpoint directory .* exists and is not empty.*",  # A resumed run's own.
        ".*your dataloader is not resumable.*",  # Its position is one integer in the datamodule's state.
        ".*callbacks used to create the checkpoint need to be provided.*",  # An evaluation needs none of them.
        ".*but have no logger configured.*",  # The table of results goes to stdout.
        ".*It is recommended to use .*sync_dist=True.*",  # torchmetrics has brought the processes' sums together.
        ".*WeightAveraging callback with a model that overrides.*",  # Which shards for fsdp2 alone, refused with it.
        ".*FSDP2-wrapped module .* returned a view tensor.*",  # Which nothing here changes in place.
        ".*litlogger.*",
        ".*litmodels.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def of_callback(record: logging.LogRecord) -> bool:
    """Whether a record that Lightning logs for the first process alone is more than a tip."""
    return record.levelno > logging.INFO or Path(record.pathname).parent.name == "callbacks"


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    # What TensorBoard's writing thread meets is raised to its next caller too, who says so in one line.
    if type(failure.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(failure)


@contextlib.contextmanager
def heavy_command() -> Iterator[None]:
    """The process of a command that computes: quiet libraries, threads, memory; known failures as one line."""
    import torch
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from tinytf.training.distributed.launcher import lost_process
    from tinytf.training.hardware import tune_glibc_malloc

    quiet_libraries()
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        logging.getLogger("tinytf").setLevel(logging.ERROR)  # The first process speaks for all.
    if "OMP_NUM_THREADS" not in os.environ:
        # torch counts the machine's cores; a container may be given a share of their time.
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    tune_glibc_malloc()
    try:
        yield
    except Exception as error:
        reason = explain_shortage(error) or lost_process(error)
        if reason:
            raise RunError(reason) from error
        raise


def explain_shortage(error: BaseException) -> str | None:
    """What ran out, memory or disk, and what to lower; None for any other failure."""
    import torch

    if is_disk_full(error):
        filename = getattr(error, "filename", None)
        return (
            f"the disk is full{f' ({filename})' if filename else ''}; free some space and resume with --ckpt_path last"
        )
    # torch raises a plain RuntimeError when the CPU's memory runs out.
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or on_cpu:
        return (
            "out of memory: lower data.batch_size (trainer.accumulate_grad_batches makes up for it), data.seq_len, "
            "or model.d_model"
        )
    # Nor has it a class for a lost loader process; one that dies while it hands a batch over cuts the pipe.
    lost = isinstance(error, RuntimeError) and str(error).startswith("DataLoader ")
    cut = isinstance(error, (ConnectionError, EOFError)) and any(
        frame.name == "_try_get_data" for frame in traceback.extract_tb(error.__traceback__)
    )
    if lost or cut:
        how = str(error).partition(".")[0] or "its pipe ended"
        return (
            f"a process that reads batches was lost ({how}): perhaps memory or /dev/shm is full; --data.num_workers 0 "
            "reads them in the training process. Resume with --ckpt_path last"
        )
    return None
