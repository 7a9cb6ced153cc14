"""Strangers' Jinja, as transformers renders it (`apply_chat_template`), with bounds on its output, time and memory."""

from __future__ import annotations

import ctypes
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tinytf.errors import UserError
from tinytf.utils.files import shorten
from tinytf.utils.text import printable

LONGEST_TEXT = 1 << 24
"""Characters that a template may write of one conversation."""

SECONDS = 10
"""That one conversation may take; a usual one takes a thousandth."""

MOST_MEMORY = 1 << 30
"""Bytes that the process may grow by meanwhile: filters and formats make a text of any width in one step."""

STATM = Path("/proc/self/statm")
"""Where Linux says how many pages a process maps."""


def render(template: str, **variables: Any) -> str:
    """What a template writes; call it within `bounded`.

    Raises:
        UserError: if it fails, with its own words if it calls raise_exception.
    """
    with _one_line():
        written, length = [], 0
        for piece in _compiled(template).generate(**variables):
            written.append(piece)
            length += len(piece)
            if length > LONGEST_TEXT:
                raise UserError(f"the chat template writes more than {LONGEST_TEXT:,} characters")
        return "".join(written)


# -- time and memory -----------------------------------------------------------------------------------------------


class _TooLongError(UserError):
    def __init__(self, *_: str) -> None:  # What raises it in another thread gives no words.
        super().__init__(f"the chat template takes more than {SECONDS} seconds for one conversation")


@contextmanager
def bounded() -> Iterator[None]:
    """UserError after `SECONDS`, or, on Linux, past `MOST_MEMORY`; one thread at a time."""
    # The limit on memory is the process's: two threads would restore it in the wrong order.
    with _ONE_AT_A_TIME, _memory_limit():
        # A signal costs microseconds and counts the processor's time, but only a main thread gets it, not on Windows.
        of_main = threading.current_thread() is threading.main_thread()
        with _alarm() if of_main and hasattr(signal, "setitimer") else _watched():
            yield


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def _alarm() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _watched() -> Iterator[None]:
    """A thread that waits, and then raises in this one; as with a signal, between two steps of the interpreter."""
    raise_in, here = ctypes.pythonapi.PyThreadState_SetAsyncExc, ctypes.c_ulong(threading.get_ident())
    ended, lock = threading.Event(), threading.Lock()

    def watch() -> None:
        if not ended.wait(SECONDS):
            with lock:
                if not ended.is_set():
                    raise_in(here, ctypes.py_object(_TooLongError))

    threading.Thread(target=watch, daemon=True, name="chat template").start()
    try:
        yield
    finally:
        with lock:
            ended.set()
            raise_in(here, None)  # What was raised and has not arrived would do so anywhere later.


@contextmanager
def _memory_limit() -> Iterator[None]:
    """MemoryError past `MOST_MEMORY`, on Linux; without it the system would end the process, or another one."""
    if not STATM.exists():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = int(STATM.read_text().split()[0]) * resource.getpagesize() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(soft, most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# -- jinja2 --------------------------------------------------------------------------------------------------------


class _Sandbox(ImmutableSandboxedEnvironment):
    """transformers' sandbox, in which a product cannot fill the memory either."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        for one, other in ((left, right), (right, left)):
            large = abs(one) > (64 if operator == "**" else LONGEST_TEXT) if isinstance(one, int) else False
            if large and (operator == "**" or not isinstance(other, (int, float))):
                raise SecurityError(f"a value of {operator} {shorten(str(one), 30)} would be too large")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """transformers' ``{% generation %}``, which marks an assistant's text: here the text as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own type

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(template)


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
             sort_keys: bool = False) -> str:  # fmt: skip
    # jinja2's own escapes what HTML would read.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    # A template may fail in any way that Python can: a TypeError of a sum, a RecursionError of a macro.
    except Exception as error:
        number = getattr(error, "lineno", None)
        line = f" at line {number}" if isinstance(number, int) else ""
        why = shorten(printable(" ".join(str(error).split())), 300) or type(error).__name__
        raise UserError(f"the chat template fails{line}: {why}") from error
