"""2. Documents: conversations as text, by a tokenizer's chat template, and which parts of it are learned.

A template is Jinja, and a stranger's: it runs in jinja2's sandbox, set up as transformers does (`apply_chat_template`),
with bounds on its output, its time and its memory.
"""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from os.path import lexists
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from tinytf.data.tokenizer import end_of_text, library_errors, refuse_loss, require_unicode
from tinytf.errors import UserError
from tinytf.utils.files import read_text, shorten
from tinytf.utils.text import printable, read_json

LONGEST_TEXT = 1 << 24
"""Characters that a template may write of one conversation."""

SECONDS = 10
"""Of a processor's time that one conversation may take; a usual one takes a thousandth."""

MOST_MEMORY = 1 << 30
"""Bytes that the process may grow by meanwhile: filters and formats make a text of any width in one step."""

STATM = Path("/proc/self/statm")
"""Where Linux says how many pages a process maps."""

LARGEST_JSON = 1 << 26

TRAINING_DATE = date(2024, 7, 26)
"""What strftime_now says while a corpus is prepared: the same conversations give the same tokens on every day. It is
the day that Llama's templates fall back on."""

Message = dict[str, Any]
Segment = tuple[str, bool]
"""A text, and whether it is learned."""
Example = tuple[Segment, ...]
"""What a model reads as one document: texts that are only read, each followed by one that is learned."""


@dataclass(frozen=True)
class Chat:
    """A chat template and the special tokens that it may write. Plain values: it travels to other processes."""

    template: str
    special_tokens: tuple[str, ...]

    @classmethod
    def of(cls, template: str, tokenizer: Tokenizer) -> Chat:
        """The template of this tokenizer.

        Raises:
            UserError: if it is no template, or ends an assistant's turn with no special token, so that a model that
                learns from it would never stop.
        """
        added = tokenizer.get_added_tokens_decoder().values()
        chat = cls(template, tuple(sorted(token.content for token in added if token.special)))
        chat.end_of_turn()
        return chat

    def render(self, messages: list[Message], *, add_generation_prompt: bool, today: date = TRAINING_DATE) -> str:
        """The conversation as text.

        Args:
            messages: each with role and content.
            add_generation_prompt: end with what comes before an assistant's answer.
            today: what strftime_now says.

        Raises:
            UserError: if the template fails, with its own words if it calls raise_exception.
        """
        with _one_line():
            written, length = [], 0
            for piece in _compiled(self.template).generate(
                messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt,
                strftime_now=today.strftime,
            ):  # fmt: skip
                written.append(piece)
                length += len(piece)
                if length > LONGEST_TEXT:
                    raise UserError(f"the chat template writes more than {LONGEST_TEXT:,} characters")
            return "".join(written)

    def examples(self, messages: Any) -> tuple[Example, ...]:
        """What a model learns of a conversation: each answer of the assistant, after what it would be asked with.

        That is one example, unless the template writes earlier turns otherwise once others follow, as those do that
        leave out earlier thoughts: then each answer that follows such a change begins an example of its own.

        Raises:
            UserError: for what is no conversation, holds a special token's text, or no answer.
        """
        turns = self.require_messages(messages)
        examples: list[list[Segment]] = []
        done = ""
        with time_limit():
            for number, turn in enumerate(turns):
                if turn["role"] != "assistant":
                    continue
                prompt = self.render(turns[:number], add_generation_prompt=True)
                text = self.render(turns[: number + 1], add_generation_prompt=False)
                if not prompt or not text.startswith(prompt) or text == prompt:
                    raise UserError(
                        f"the chat template does not begin message {number + 1}, an assistant's, with what it adds "
                        "when it asks for one (add_generation_prompt): what is learned would not be what is asked for"
                    )
                if not examples or not prompt.startswith(done):
                    examples.append([])
                    done = ""
                examples[-1] += [(prompt[len(done) :], False), (text[len(prompt) :], True)]
                done = text
        if not examples:
            raise UserError("its messages hold none of the role 'assistant', so that there is nothing to learn")
        return tuple(tuple(segment for segment in example if segment[0]) for example in examples)

    def require_messages(self, messages: Any) -> list[Message]:
        """A conversation as it should be; UserError for anything else.

        A special token's text in a message is refused: the template's text is encoded with special tokens, so that
        whoever wrote the message would end the turn, or speak in another role.
        """
        if not isinstance(messages, list) or not messages:
            raise UserError(f"its messages are {_shown(messages)}, not a list of objects with role and content")
        for number, message in enumerate(messages, 1):
            for key in ("role", "content"):
                if not isinstance(message, dict) or not isinstance(message.get(key), str):
                    found = f"its {key} is {_shown(message.get(key))}" if isinstance(message, dict) else _shown(message)
                    raise UserError(f"message {number}: {found}, but it must be text")
            if message["role"] == "assistant" and not message["content"]:
                raise UserError(
                    f"message {number}: the assistant's content is empty, so that there is nothing to learn"
                )
            for text in _texts(message):
                require_unicode(text, f"message {number}: a text")
                if special := _any_of(self.special_tokens).search(text):
                    raise UserError(
                        f"message {number} holds the text of the special token {special[0]!r}, which would act as one: "
                        "remove it from the text"
                    )
        return messages

    def end_of_turn(self) -> str:
        """The special token that ends an assistant's turn; UserError if the template writes none there."""
        probe = "tinytf probe"
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": probe}]
        with time_limit():
            text = self.render(turn, add_generation_prompt=False)
        end = _any_of(self.special_tokens).search(text.rpartition(probe)[2])
        if probe not in text or end is None:
            raise UserError(
                "the chat template ends an assistant's turn with no special token of the tokenizer, so that a model "
                "would not learn where to stop: give prompt and completion in place of messages"
            )
        return end[0]

    def ends(self, tokenizer: Tokenizer) -> dict[int, str]:
        """The ids at which an answer ends, and of what that is the end."""
        added = tokenizer.get_added_tokens_decoder().items()
        turns = {number: "end_of_turn" for number, token in added if token.content in self.special_tokens}
        return {**turns, **end_of_text(tokenizer)}


def special_encoder(tokenizer: Tokenizer) -> Callable[[str, object], npt.NDArray[np.uint32]]:
    """Ids of a template's text, in which special tokens are special; ``where`` names the text in errors."""
    special = Tokenizer.from_str(tokenizer.to_str())
    special.encode_special_tokens = False
    special.no_truncation()
    special.no_padding()

    def encode(text: str, where: object) -> npt.NDArray[np.uint32]:
        with library_errors(f"{where}: the tokenizer cannot encode it"):
            ids = special.encode(text, add_special_tokens=False).ids
        refuse_loss(special, ids, text, where)
        return np.array(ids, dtype=np.uint32)

    return encode


# -- the template of a folder --------------------------------------------------------------------------------------


def read_chat_template(folder: Path) -> str | None:
    """The chat template beside a tokenizer.json, as transformers finds it; None if there is none.

    Raises:
        UserError: for a file that cannot be read.
    """
    config: Any = {}
    # A name that is there and is no file, or a link to none, is refused where it is read.
    if lexists(path := folder / "tokenizer_config.json"):
        config = read_json(read_text(path, what="tokenizer", limit=LARGEST_JSON), f"tokenizer {path}")
    config = config if isinstance(config, dict) else {}
    template = config.get("chat_template")
    if isinstance(template, list):  # Several, by name.
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    if lexists(path := folder / "chat_template.jinja"):
        template = read_text(path, what="chat template", limit=LARGEST_JSON)
    return bind_special_tokens(template, config) if isinstance(template, str) else None


def bind_special_tokens(template: str, config: dict[str, Any]) -> str:
    """The template with the values of bos_token and the like written at its head, so that it needs nothing else.

    Args:
        config: of the tokenizer (tokenizer_config.json), where transformers finds them.
    """
    head = ""
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and re.search(rf"\b{name}\b", template):
            head += f"{{%- set {name} = {json.dumps(token, ensure_ascii=False)} -%}}"
    return template if template.startswith(head) else head + template


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


@contextmanager
def time_limit() -> Iterator[None]:
    """UserError after `SECONDS` of processor time, where a signal can tell: in a main thread, not on Windows."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise UserError(f"the chat template takes more than {SECONDS} seconds for one conversation")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        with _memory_limit():
            yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


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


@lru_cache(maxsize=8)
def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    # The longest first, for one may begin with another. Of no tokens: a pattern that matches nothing.
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def _texts(message: Message) -> Iterator[str]:
    """Every text in a message, at any depth."""
    left: list[Any] = [message]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, (dict, list)):
            left += [*value.items()] if isinstance(value, dict) else value
        elif isinstance(value, tuple):
            left += value


def _shown(value: Any) -> str:
    return "null" if value is None else f"{value!r:.40}"
