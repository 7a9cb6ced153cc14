"""`tinytf export`: a checkpoint in the formats that production runs, each measured against it."""

from __future__ import annotations

import sys
from typing import Any

from tinytf.cli.config.flags import CommandParser, add_checkpoint_flags, threads
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
    flags.add_argument(
        "--formats", default=",".join(DEFAULT), metavar="A,B", help="comma-separated (default: %(default)s)"
    )
    flags.add_argument("--output_dir", metavar="DIR", help="default: export in the checkpoint's folder")
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
    output_dir, text = (
        None if given is None else user_path(given, what=flag)
        for flag, given in (("--output_dir", args.output_dir), ("--text", args.text))
    )
    root = user_path(args.root, what="--root")
    with_overrides(args.threshold)  # Before torch is imported and the checkpoint read.
    formats = choose([name.strip() for name in args.formats.split(",") if name.strip()])
    from tinytf.export.bundle import export_checkpoint
    from tinytf.run.directory import is_own, resolve_checkpoint

    ckpt_path = resolve_checkpoint(args.ckpt_path, args.name, root)
    content = export_checkpoint(
        ckpt_path,
        formats,
        output_dir=output_dir,
        text=text,
        own=is_own(ckpt_path, root),
        thresholds=args.threshold,
        threads=args.threads,
        say=say,
    )
    print_result(content, as_json=args.json)
    return 1 if content["failed"] else 0


def print_result(content: dict[str, Any], *, as_json: bool) -> None:
    """The content of ``export.json`` on stdout, as a table or as it is."""
    from tinytf.export.parity.report import report

    print(strict_json(content, indent=2) if as_json else report(content))


def say(line: str) -> None:
    """Progress, on stderr: stdout is for the table. Tracebacks have lines, and names come from strangers' files."""
    line = "\n".join(map(printable, line.splitlines()))
    print(line, file=sys.stderr, flush=True)
