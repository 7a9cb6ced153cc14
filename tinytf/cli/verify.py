"""`tinytf verify`: measure an export again, without the run it came from."""

from __future__ import annotations

from tinytf.cli.config.flags import CommandParser, add_base_flag
from tinytf.cli.export import add_check_flags, print_result, say
from tinytf.errors import UserError
from tinytf.export.parity.thresholds import with_overrides
from tinytf.utils.files import user_path

NOTES = """\
The artifacts are compared with the weights in the folder, so that a copied folder is enough, or with the checkpoint of
--ckpt_path. Thresholds are those of the export unless given here. Exits 1 if a file is missing, changed or past a
threshold; a model card may be edited.

Nothing in the folder runs: files that can hold code (pt2, torchscript) are opened only with --trust, for a folder that
you or someone you trust exported. Without it they are "not verified".
"""


def parser() -> CommandParser:
    """The command's flags."""
    flags = CommandParser(prog="tinytf verify", description="Measure an export again.", epilog=NOTES)
    flags.add_argument("folder", metavar="DIR", help="the folder that tinytf export wrote")
    flags.add_argument("--ckpt_path", metavar="PATH", help="compare with this checkpoint (default: the weights in DIR)")
    add_base_flag(flags)
    flags.add_argument("--trust", action="store_true", help="open files that can run code: pt2, torchscript")
    add_check_flags(flags)
    return flags


def run(argv: list[str]) -> int:
    """Parse the flags, measure, print the table.

    Returns:
        0, or 1 if an artifact failed.

    Raises:
        UserError: if the folder is not an export, or there is nothing to compare it with.
    """
    args = parser().parse_args(argv)
    with_overrides(args.threshold)
    if args.base is not None and not args.ckpt_path:
        raise UserError("--base is of a --ckpt_path with an adapter, and the weights in DIR are whole: leave it out")
    from tinytf.export.verify import verify

    ckpt_path = None
    if args.ckpt_path:
        from tinytf.run.directory import resolve_checkpoint

        ckpt_path = resolve_checkpoint(args.ckpt_path)
    folder = user_path(args.folder, what="folder")
    content = verify(folder, ckpt_path, args.threshold, args.threads, say, trust=args.trust, base=args.base)
    print_result(content, as_json=args.json)
    return 1 if content["failed"] else 0
