"""`tinytf serve`: a page and an OpenAI-compatible API."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tinytf.cli.config.flags import (
    CommandParser,
    above_zero,
    add_base_flag,
    add_checkpoint_flags,
    checkpoint_path,
    integer,
    positive,
    threads,
)
from tinytf.errors import UserError
from tinytf.utils.files import reason

if TYPE_CHECKING:
    from tinytf.serve.models import ModelSource

NOTES = """\
http://127.0.0.1:8000 is the page; http://127.0.0.1:8000/v1 is what clients of OpenAI's API take as base_url, with any
model name that GET /v1/models lists: the run's name is the model of --ckpt_path, NAME@STEP its other checkpoints.

Texts decode together, up to --max_batch; --max_queue more wait, and past that a request is answered 429. Each text is
the one that tinytf generate gives for the same prompt, settings and seed. A text that is not complete after --timeout
seconds ends with an error. SIGTERM and Ctrl-C let texts end that have begun; a second Ctrl-C does not.

Another --host than this machine's own asks for a key, best in the environment as TINYTF_API_KEY: a flag can be read by
other users of the machine. There is no TLS: put a proxy in front that has it.
"""

LOCAL = ("127.0.0.1", "localhost", "::1")


def parser() -> CommandParser:
    """The command's flags."""
    flags = CommandParser(prog="tinytf serve", description="Serve a page and an OpenAI-compatible API.", epilog=NOTES)
    add_checkpoint_flags(flags, required=False)
    add_base_flag(flags)
    flags.add_argument(
        "--model",
        metavar="PATH",
        help="in place of --ckpt_path: an exported .onnx file with a key-value cache, or a Hugging Face folder",
    )
    flags.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    flags.add_argument("--port", type=integer, default=8000, help="0 takes a free one (default: %(default)s)")
    flags.add_argument(
        "--api_key", metavar="KEY", help="ask clients for this key (default: TINYTF_API_KEY of the environment)"
    )
    flags.add_argument(
        "--max_batch", type=positive, default=16, metavar="N", help="texts decoded together (default: %(default)s)"
    )
    flags.add_argument(
        "--max_queue", type=positive, default=64, metavar="N", help="texts that may wait (default: %(default)s)"
    )
    flags.add_argument(
        "--timeout", type=above_zero, default=300.0, metavar="SECONDS", help="of a request (default: %(default)g)"
    )
    flags.add_argument("--threads", type=threads, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    flags.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: %(default)s")
    return flags


def run(argv: list[str]) -> int:
    """Serve until a signal comes.

    Returns:
        128 + the signal's number.

    Raises:
        UserError: if the flags or the model cannot be used, or the port is taken.
    """
    args = parser().parse_args(argv)
    if bool(args.ckpt_path) == bool(args.model):
        raise UserError("give one of --ckpt_path and --model; see tinytf serve --help")
    if args.model and args.base is not None:
        raise UserError("--base is of a --ckpt_path with an adapter, and an exported --model is whole: leave it out")
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port {args.port}: give one from 0 to 65535")
    key = os.environ.get("TINYTF_API_KEY") if args.api_key is None else args.api_key
    if key is not None and (not key.isascii() or not key.isprintable() or key != key.strip() or len(key) < 8):
        raise UserError("--api_key, or TINYTF_API_KEY: give at least 8 printable ASCII characters")
    if key is None and args.host not in LOCAL:
        raise UserError(
            f"--host {args.host}: others could use the model: give --api_key or set TINYTF_API_KEY, or leave --host out"
        )
    missing = [name for name in ("starlette", "uvicorn", "pydantic", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise UserError(f"serving needs {', '.join(missing)}: pip install 'tinytf[serve]'")
    with contextlib.closing(listen(args.host, args.port)) as listener:
        return serve(args, key, listener)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; UserError if none can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # So that a server can be started again at once; Windows means another thing by it.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # Before the address is printed: whoever reads it may connect at once.
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} --port {port}: it cannot listen there: {reason(error)}") from None
    return listener


def serve(args: argparse.Namespace, key: str | None, listener: socket.socket) -> int:
    """Load the model and answer requests."""
    import uvicorn

    from tinytf.cli.generate import device_for, note
    from tinytf.serve.app import Application, Limits
    from tinytf.serve.models import Models, facts_of

    device_for(args)
    sources = [model_source(args)] if args.model else checkpoint_sources(args)
    models = Models(sources, facts_of, args.max_batch, args.max_queue)
    wildcard = args.host in ("0.0.0.0", "::")
    hosts = None if wildcard else {*LOCAL, args.host.lower()} if args.host in LOCAL else {args.host.lower()}
    application = Application(models, Limits(hosts, key, args.timeout))
    # A client's broken request is no news; a failure of ours is, with its traceback.
    config = uvicorn.Config(
        application.asgi, log_config=None, log_level="error", access_log=False, lifespan="off", server_header=False,
        timeout_graceful_shutdown=int(args.timeout) + 1, limit_concurrency=1_000,
    )  # fmt: skip
    host, port = listener.getsockname()[:2]
    note(f"serving {models.default} at http://{f'[{host}]' if ':' in host else host}:{port}")
    received: list[int] = []

    class Server(uvicorn.Server):
        """uvicorn's own raises a signal again after it, which would end the process without an exit code of ours."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            def stop(number: int, frame: object) -> None:
                self.should_exit, self.force_exit = True, bool(received)
                received.append(number)

            before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    Server(config).run(sockets=[listener])
    models.close()
    return 128 + received[0]


def model_source(args: argparse.Namespace) -> ModelSource:
    """The one of --model, under the name of the bundle's run or of the folder."""
    from tinytf.cli.generate import from_export
    from tinytf.serve.models import ModelSource

    path = Path(args.model).absolute()
    name = path.name if path.suffix != ".onnx" else path.stem
    created = int(path.stat().st_mtime) if path.exists() else 0
    return ModelSource(name, partial(from_export, args), created)


def checkpoint_sources(args: argparse.Namespace) -> list[ModelSource]:
    """The one of --ckpt_path, and the others of its run by their steps."""
    from tinytf.run.directory import saved_checkpoints

    path = checkpoint_path(args).resolve()
    found = checkpoint_source(args, path)
    # Oldest first. Two of one step have the same weights: the one that has a loss in its name stays.
    others = {}
    for source in map(partial(checkpoint_source, args), reversed(saved_checkpoints(path.parent))):
        if source.val_loss is not None or source.step not in others:
            others[source.step] = replace(source, name=f"{found.name}@{source.step}")
    others.pop(found.step, None)
    return [found, *others.values()]


def checkpoint_source(args: argparse.Namespace, path: Path) -> ModelSource:
    """A checkpoint under its run's name."""
    import tinytf
    from tinytf.run.directory import CHECKPOINT, loss_of, version_of
    from tinytf.serve.models import ModelSource

    match, loss = CHECKPOINT.fullmatch(path.name), loss_of(path)
    run_dir = path.parent
    name = run_dir.parent.name if version_of(run_dir) >= 0 else path.stem
    load = partial(tinytf.load, path, device=args.device, base=args.base)
    created = int(path.stat().st_mtime)
    return ModelSource(name, load, created, int(match[1]) if match else None, loss if math.isfinite(loss) else None)
