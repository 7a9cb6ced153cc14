"""2. Documents: conversations as text, by a tokenizer's chat template, and which parts of it are learned.

A template is Jinja, and a stranger's: it runs in `tinytf.data.examples.sandbox`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from os.path import lexists
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tinytf.data.examples.sandbox import bounded, render
from tinytf.data.tokenizer import end_of_text, library_errors, refuse_loss, require_unicode
from tinytf.errors import UserError
from tinytf.utils.files import read_text
from tinytf.utils.text import read_json

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
        return render(
            self.template, messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt,
            strftime_now=today.strftime,
        )  # fmt: skip

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
        with bounded():
            for number, turn in enumerate(turns):
                if turn["role"] != "assistant":
                    continue
                if not turn["content"]:
                    raise UserError(
                        f"message {number + 1}: the assistant's content is empty, so that there is nothing to learn"
                    )
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
        with bounded():
            text = self.render(turn, add_generation_prompt=False)
        end = _any_of(self.special_tokens).search(text.rpartition(probe)[2])
        if probe not in text or end is None:
            raise UserError(
                "the chat template ends an assistant's turn with no special token of the tokenizer, so that nothing "
                "says where an answer ends"
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
