"""`tinytf verify`: measure an export again, without the run it came from."""

from __future__ import annotations

from pathlib import Path

from tinytf.cli.export import add_proof_flags, print_result, say
from tinytf.cli.flags import CommandParser

NOTES = """\
The artefacts are compared with the checkpoint where it is still there and unchanged, else with the weights in the
folder, so that a copied folder is enough. Thresholds are those of the export unless given here.
Exits 1 where a file is missing, changed or past a threshold.
"""


def parser() -> CommandParser:
    """The command's flags."""
    flags = CommandParser(prog="tinytf verify", description="Measure an export again.", epilog=NOTES)
    flags.add_argument("folder", metavar="DIR", help="the folder that tinytf export wrote")
    flags.add_argument("--ckpt_path", metavar="PATH", help="compare with this checkpoint (default: the one recorded)")
    add_proof_flags(flags)
    return flags


def run(argv: list[str]) -> int:
    """Parse the flags, measure, print the table.

    Returns:
        0, or 1 where an artefact failed.

    Raises:
        UserError: where the folder is no export, or there is nothing to compare it with.
    """
    args = parser().parse_args(argv)
    from tinytf.export.verify import verify

    ckpt_path = None
    if args.ckpt_path:
        from tinytf.run.directory import resolve_checkpoint

        ckpt_path = resolve_checkpoint(args.ckpt_path)
    content = verify(Path(args.folder), ckpt_path, args.threshold, args.threads, say)
    print_result(content, as_json=args.json)
    return 1 if content["failed"] else 0
