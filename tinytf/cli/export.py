"""`tinytf export`: a checkpoint in the formats that production runs, each measured against it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from tinytf.cli.config.flags import CommandParser, add_base_flag, add_checkpoint_flags, threads
from tinytf.cli.paste import console_script, from_here
from tinytf.errors import UserError
from tinytf.export.formats import DEFAULT, FORMATS, GROUPS, choose
from tinytf.export.parity.thresholds import with_overrides
from tinytf.utils.files import user_path
from tinytf.utils.text import printable, strict_json


def parser() -> CommandParser:
    """The command's flags."""
    flags = CommandParser(
        prog="tinytf export",
        description="Export a checkpoint and compare each artifact with it.",
        epilog=_notes(),
    )
    add_checkpoint_flags(flags)
    add_base_flag(flags)
    flags.add_argument(
        "--formats", default=DEFAULT, metavar="A,B",
        help="comma-separated; if not given, %(default)s: those of its formats that the model can be in",
    )  # fmt: skip
    flags.add_argument("--output_dir", metavar="DIR", help="default: export in the checkpoint's folder")
    flags.add_argument(
        "--runtime", metavar="DIR",
        help="for web: a node_modules with transformers.js, copied into the page, which fetches it otherwise",
    )  # fmt: skip
    add_check_flags(flags)
    flags.add_argument("--text", metavar="FILE", help="held-out UTF-8 text (default: the run's validation split)")
    flags.add_argument(
        "--root", default="checkpoints", metavar="DIR",
        help="the folder of your runs: of others, a text that they name is not opened (default: %(default)s)",
    )  # fmt: skip
    return flags


def add_check_flags(flags: CommandParser) -> None:
    """What export and verify share."""
    flags.add_argument(
        "--threshold", action="append", default=[], metavar="NAME=VALUE",
        help="let more or less pass, such as int8.kl=1e-3; may be repeated",
    )  # fmt: skip
    flags.add_argument("--threads", type=threads, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    flags.add_argument("--json", action="store_true", help="print JSON in place of the table")


def _notes() -> str:
    width = max(map(len, [*FORMATS, *GROUPS]))
    singles = [f"  {format.name:<{width}}  {format.file}: {format.about}" for format in FORMATS.values()]
    groups = [f"  {name:<{width}}  {', '.join(members)}" for name, members in GROUPS.items()]
    return "\n".join(
        [
            "Formats:",
            *singles,
            *groups,
            "",
            "Every artifact is loaded from disk in its own runtime and compared with the checkpoint in float32.",
            "One that is past a threshold is not left in the folder, and the command exits 1. One whose runtime is",
            'not installed is kept and marked "not verified". export.json records all numbers; tinytf verify',
            "measures them again. What you put into the folder yourself stays there.",
            "",
            "Graphs with onnxruntime's fused attention are built from the huggingface folder:",
            "  python -m onnxruntime_genai.models.builder -i huggingface -o fused -p int4 -e cpu",
        ]
    )


def run(argv: list[str]) -> int:
    """Parse the flags, export, print the table.

    Returns:
        0, or 1 if an artifact failed.

    Raises:
        UserError: if flags, checkpoint, text or folder cannot be used.
    """
    args = parser().parse_args(argv)
    output_dir, text, runtime = (
        None if given is None else user_path(given, what=flag)
        for flag, given in (("--output_dir", args.output_dir), ("--text", args.text), ("--runtime", args.runtime))
    )
    root = user_path(args.root, what="--root")
    with_overrides(args.threshold)  # Before torch is imported and the checkpoint read.
    formats = choose([name.strip() for name in args.formats.split(",") if name.strip()])
    if runtime is not None and "web" not in {format.name for format in formats}:
        raise UserError(f"--runtime {runtime}: it is for the page of the format web; add web to --formats")
    from tinytf.export.bundle import export_checkpoint
    from tinytf.run.directory import is_own, resolve_checkpoint

    ckpt_path = resolve_checkpoint(args.ckpt_path, args.name, root)
    content = export_checkpoint(
        ckpt_path,
        formats,
        output_dir=output_dir,
        text=text,
        own=is_own(ckpt_path, root),
        base=args.base,
        thresholds=args.threshold,
        threads=args.threads,
        runtime=runtime,
        say=say,
    )
    print_result(content, as_json=args.json)
    if content["artifacts"]:
        say("next:")
        for line in next_commands(output_dir or ckpt_path.resolve().parent / "export", content):
            say(f"  {line}")
    return 1 if content["failed"] else 0


def next_commands(folder: Path, content: dict[str, Any]) -> list[str]:
    """What to do with a bundle, as one would type it in this folder: a line for each kind of file, and verify."""
    from tinytf.data.tokenizer import tokenizer_from_file
    from tinytf.export.formats.card import example_prompt

    names = {entry["name"] for entry in content["artifacts"]}
    prompt = example_prompt(tokenizer_from_file(folder / "tokenizer.json"))

    def file(*choice: str) -> str | None:
        """The first of these formats that there is."""
        return next((str(Path(from_here(folder), FORMATS[name].file)) for name in choice if name in names), None)

    def python(code: str) -> str:
        return f"{console_script('python')} -c {shlex.quote(code)}"

    lines = []
    if path := file("huggingface"):
        text = f'pipeline("text-generation", {json.dumps(path)})({json.dumps(prompt)})[0]["generated_text"]'
        lines.append(python(f"from transformers import pipeline; print({text})"))
    if path := file("onnx-kv", "onnx-int8", "onnx-int4"):
        # With "=", because a prompt may begin with a dash.
        chat = " --chat" if "chat_template.jinja" in content["runtime_files"] else ""
        program = console_script("tinytf")
        lines.append(f"{program} generate --model {shlex.quote(path)}{chat} --prompt={shlex.quote(prompt)}")
    elif path := file("onnx"):
        feed = '{"input_ids": numpy.array([[1, 0]])}'
        run = f"onnxruntime.InferenceSession({json.dumps(path)}).run(None, {feed})[0].shape"
        lines.append(python(f"import numpy, onnxruntime; print({run})"))
    if path := file("pt2"):
        lines.append(
            python(f"import torch; print(torch.export.load({json.dumps(path)}).module()(torch.tensor([[1, 0]])).shape)")
        )
    elif path := file("torchscript"):
        lines.append(python(f"import torch; print(torch.jit.load({json.dumps(path)})(torch.tensor([[1, 0]])).shape)"))
    if path := file("web"):
        lines.append(f"{console_script('python')} -m http.server --directory {shlex.quote(path)}")
    if path := file("gguf-f16", "gguf-q8_0", "gguf-f32"):
        lines.append(f"llama-server -m {shlex.quote(path)}")
    trust = " --trust" if any(FORMATS[name].runs_code for name in names) else ""
    return [*lines, f"{console_script('tinytf')} verify {shlex.quote(from_here(folder))}{trust}"]


def print_result(content: dict[str, Any], *, as_json: bool) -> None:
    """The content of ``export.json`` on stdout, as a table or as it is."""
    from tinytf.export.parity.report import report

    print(strict_json(content, indent=2) if as_json else report(content))


def say(line: str) -> None:
    """Progress, on stderr: stdout is for the table. Tracebacks have lines, and names come from strangers' files."""
    line = "\n".join(map(printable, line.splitlines()))
    print(line, file=sys.stderr, flush=True)
