"""`tinytf generate`: complete a prompt, streamed to stdout as it is decoded."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from tinytf.cli.config.flags import (
    CommandParser,
    add_base_flag,
    add_checkpoint_flags,
    checkpoint_path,
    integer,
    number,
    positive,
    threads,
)
from tinytf.cli.interactive import LONGEST_PROMPT, complete_prompts
from tinytf.errors import UserError
from tinytf.utils.files import read_text, user_path
from tinytf.utils.text import terminal_text

# torch takes a second to import: a mistyped flag is refused before that.
if TYPE_CHECKING:
    from tinytf.generation.conversation import Conversation
    from tinytf.generation.generator import TextGenerator
    from tinytf.generation.sampling import Sampling
    from tinytf.generation.streaming import Completion

NOTES = """\
Output is UTF-8 on stdout: the prompt, its completion, and one line feed at the end. With --num_samples above 1 each
sample follows a line "--- sample 2 of 3, seed 43 ---". Sample i is what --num_samples 1 --seed SEED+i gives.

A sample ends after --max_new_tokens tokens, before a --stop string, or at <|endoftext|>, which is not printed.
An empty prompt starts from <|endoftext|> if the model was trained on several documents, else from a line feed.
A text past the model's max_seq_len continues from the last half of its context, and says so once on stderr.

With --chat the prompt is a user's message, and the answer alone is printed: the model's chat template says what
stands around them, and the answer ends at a special token, such as <|im_end|>. With --interactive too, the lines and
their answers are one conversation.

The cuts apply in this order: temperature, top_k, top_p, min_p.

With --interactive each line is a prompt of its own, which continues no earlier text; an empty line does nothing. A line
that ends in a backslash continues in the next one. At a terminal lines are edited and found again with the arrow keys,
Ctrl-C stops the text and Ctrl-D ends with exit code 0. In a pipe Ctrl-C, and a prompt that cannot be encoded, end the
command; --json keeps the texts apart. --prompt and --prompt_file FILE are the first prompt. The texts take the seeds
SEED, SEED+1, … in their order, so that the same session gives the same texts.
"""


def parser() -> CommandParser:
    """The command's flags."""
    flags = CommandParser(
        prog="tinytf generate", description="Write text with a checkpoint or an exported model.", epilog=NOTES
    )
    add_checkpoint_flags(flags, required=False)
    add_base_flag(flags)
    flags.add_argument(
        "--model",
        metavar="PATH",
        help="in place of --ckpt_path: an exported .onnx file with a key-value cache, or a Hugging Face folder",
    )
    prompt = flags.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", default="", help="text to complete (default: empty)")
    prompt.add_argument("--prompt_file", metavar="FILE", help="a UTF-8 file with the prompt, or - for stdin")
    flags.add_argument("--max_new_tokens", type=positive, default=200, metavar="N", help="default: %(default)s")
    flags.add_argument(
        "--temperature", type=number, default=0.8, metavar="T", help="0 is greedy decoding (default: %(default)s)"
    )
    flags.add_argument("--top_k", type=integer, metavar="K", help="draw from the K most probable tokens (default: all)")
    flags.add_argument(
        "--top_p",
        type=number,
        metavar="P",
        help="draw from the fewest tokens that hold this probability (default: all)",
    )
    flags.add_argument(
        "--min_p", type=number, metavar="P", help="draw from tokens at least P times as probable as the first one"
    )
    flags.add_argument("--seed", type=integer, default=0, help="same seed, same text (default: %(default)s)")
    flags.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this; may be repeated")
    flags.add_argument("--num_samples", type=positive, default=1, metavar="N", help="default: %(default)s")
    flags.add_argument(
        "--threads", type=threads, default=1, metavar="N",
        help="CPU threads (default: %(default)s, the fastest for one token at a time unless the model is large)",
    )  # fmt: skip
    flags.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: %(default)s")
    flags.add_argument("--interactive", action="store_true", help="complete prompts in a loop, one a line of stdin")
    flags.add_argument("--chat", action="store_true", help="answer the prompt, by the model's chat template")
    flags.add_argument("--json", action="store_true", help="one JSON object a sample, printed when all are done")
    return flags


def run(argv: list[str]) -> int:
    """Parse the flags, load the model, generate.

    Returns:
        The exit code.

    Raises:
        UserError: if the flags, the prompt or the checkpoint cannot be used.
    """
    args = parser().parse_args(argv)
    if bool(args.ckpt_path) == bool(args.model):
        raise UserError("give one of --ckpt_path and --model; see tinytf generate --help")
    if args.model and args.base is not None:
        raise UserError("--base is of a --ckpt_path with an adapter, and an exported --model is whole: leave it out")
    # Each text of a session takes one more; 2^63 texts are never reached.
    largest = 2**63 if args.interactive else 2**64 - args.num_samples
    if not -(2**63) <= args.seed <= largest:
        raise UserError(f"--seed {args.seed}: give one from {-(2**63)} to {largest}")
    if "" in args.stop:
        raise UserError("--stop is empty: give the text to stop before")
    if args.interactive and args.prompt_file == "-":
        raise UserError("--prompt_file -: --interactive reads prompts from stdin, one a line; leave out one of the two")
    prompt, source = read_prompt(args), prompt_source(args)
    if args.chat:
        refuse_no_chat(args, prompt)
    sampling = sampling_of(args)
    generator = from_export(args) if args.model else from_checkpoint(args)
    write = partial(write_texts, args, generator, sampling, count(args.seed), conversation(args, generator))
    try:
        if args.interactive:
            complete_prompts(prompt, source, write)
        else:
            write(prompt, source)
    except FloatingPointError as error:
        raise UserError(f"{args.model or args.ckpt_path}: {error}; its training diverged") from error
    return 0


def refuse_no_chat(args: argparse.Namespace, prompt: str) -> None:
    """Refuse what goes with no conversation."""
    if not prompt and not args.interactive:
        raise UserError("--chat: there is no message to answer: give --prompt, --prompt_file or --interactive")
    if args.interactive and args.num_samples > 1:
        raise UserError(f"--num_samples {args.num_samples}: a conversation goes on from one answer; leave it out")


def conversation(args: argparse.Namespace, generator: TextGenerator) -> Conversation | None:
    """The conversation of --chat, None without it; UserError if the model brings no chat template."""
    if not args.chat:
        return None
    from tinytf.generation.conversation import Conversation

    if generator.chat_template is None:
        raise UserError(
            f"--chat: {args.ckpt_path or args.model} has no chat template, which comes with a base model, or a "
            "tokenizer.json that conversations were trained with: leave --chat out"
        )
    try:
        return Conversation(generator.chat_template, generator.tokenizer)
    except UserError as error:
        raise UserError(f"--chat: {args.ckpt_path or args.model}: {error}: leave --chat out") from error


def write_texts(
    args: argparse.Namespace,
    generator: TextGenerator,
    sampling: Sampling,
    seeds: Iterator[int],
    talk: Conversation | None,
    prompt: str,
    source: str,
) -> None:
    """Write --num_samples completions of a prompt, each with the next seed; an error names the prompt's ``source``."""
    try:
        ids = talk.ask(prompt) if talk else generator.encode_prompt(prompt)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    ends = talk.ends if talk else None
    completions = [generator.start_completion(ids, next(seeds), args.stop, ends) for _ in range(args.num_samples)]
    show: Callable[[], None] = (lambda: None) if args.json else Printer("" if talk else prompt, completions).show
    show()
    for _ in generator.generate_batch(ids, sampling, completions, args.max_new_tokens, note):
        show()
    for completion in completions if args.json else ():
        print(json.dumps({"prompt": prompt, **completion.report()}))
    sys.stdout.flush()
    if talk:
        talk.add(prompt, completions[0].text)


def read_prompt(args: argparse.Namespace) -> str:
    """The prompt as given, to the last line feed.

    Raises:
        UserError: if the file cannot be read or is not UTF-8; names the position.
    """
    source = prompt_source(args)
    if args.prompt_file not in (None, "-"):
        return read_text(args.prompt_file, what="--prompt_file", limit=LONGEST_PROMPT)
    if args.prompt_file is not None and sys.stdin is None:
        raise UserError(f"{source}: stdin is closed; give a file, or --prompt")
    content = os.fsencode(args.prompt) if args.prompt_file is None else sys.stdin.buffer.read(LONGEST_PROMPT + 1)
    if len(content) > LONGEST_PROMPT:
        raise UserError(f"{source}: it has more than the {LONGEST_PROMPT:,} bytes that it may have")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: byte {error.start} is not UTF-8") from error


def prompt_source(args: argparse.Namespace) -> str:
    """The flag that the prompt came from, for messages."""
    return "--prompt" if args.prompt_file is None else f"--prompt_file {args.prompt_file}"


def sampling_of(args: argparse.Namespace) -> Sampling:
    """The sampling that the flags ask for; UserError if one is out of range."""
    from tinytf.generation.sampling import Sampling

    try:
        return Sampling(args.temperature, args.top_k, args.top_p, args.min_p)
    except ValueError as error:
        raise UserError(f"--{error}") from error


def device_for(args: argparse.Namespace) -> str:
    """The device of --device; torch gets as many threads as --threads asks for."""
    import torch

    from tinytf.generation.generator import available_device

    torch.set_num_threads(args.threads)
    try:
        return available_device(args.device)
    except UserError as error:
        raise UserError(f"--{error}") from error


def from_checkpoint(args: argparse.Namespace) -> TextGenerator:
    """The model of --ckpt_path."""
    import tinytf

    device = device_for(args)
    path = checkpoint_path(args)
    loaded = tinytf.load(path, device=device, base=args.base)
    if args.ckpt_path in ("best", "last"):  # Which of many: a text goes on the screen without its model's name.
        note(f"--ckpt_path {args.ckpt_path} is {path}")
    return loaded


def from_folder(args: argparse.Namespace, path: Path) -> TextGenerator:
    """The pretrained model of a Hugging Face folder, as `model.base` takes it."""
    from tinytf.data.tokenizer import end_of_text_id
    from tinytf.generation.decoding import TransformerEngine
    from tinytf.generation.generator import TextGenerator
    from tinytf.weights.base import open_base

    device = device_for(args)
    try:
        base = open_base(str(path))
    except UserError as error:
        raise UserError(*(problem.replace("model.base", "--model", 1) for problem in error.problems)) from error
    model = base.build(base.config)
    return TextGenerator(
        TransformerEngine(model.to(device)), base.tokenizer, end_of_text_id(base.tokenizer), base.chat_template
    )


def from_export(args: argparse.Namespace) -> TextGenerator:
    """The model of --model: a folder's in torch, a file's in onnxruntime."""
    path = user_path(args.model, what="--model")
    if path.is_dir():
        return from_folder(args, path)
    from tinytf.export.formats.onnx.runtime import OnnxEngine, bundled_chat_template, bundled_tokenizer
    from tinytf.generation.generator import TextGenerator

    if args.device not in ("auto", "cpu"):
        raise UserError(f"--device {args.device}: an exported model runs on the CPU here")
    engine = OnnxEngine(path, args.threads)
    return TextGenerator(engine, bundled_tokenizer(path), engine.start_token, bundled_chat_template(path))


def note(message: str) -> None:
    """A line on stderr that is not an error."""
    print(f"tinytf: note: {message}", file=sys.stderr, flush=True)


class Printer:
    """Writes completions to stdout in their order: each as it is decoded, or at once if it ended before its turn.

    A tokenizer may be a stranger's: on a terminal, control characters of its tokens are escaped.
    """

    def __init__(self, prompt: str, completions: Sequence[Completion]) -> None:
        self._prompt = prompt
        self._completions = completions
        self._turn = 0
        self._shown = 0
        self._begin()

    def show(self) -> None:
        """Write what was decoded since the last call."""
        while self._turn < len(self._completions):
            completion = self._completions[self._turn]
            self._write(completion.text[self._shown :])
            self._shown = len(completion.text)
            if completion.finish is None:
                break
            sys.stdout.write("\n")
            self._turn, self._shown = self._turn + 1, 0
            if self._turn < len(self._completions):
                self._begin()
        sys.stdout.flush()

    def _begin(self) -> None:
        count = len(self._completions)
        if count > 1:
            sys.stdout.write(f"--- sample {self._turn + 1} of {count}, seed {self._completions[self._turn].seed} ---\n")
        self._write(self._prompt)

    def _write(self, text: str) -> None:
        sys.stdout.write(terminal_text(text) if sys.stdout.isatty() else text)
