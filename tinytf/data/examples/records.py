"""2. Documents: what a record holds: a text, a prompt with its completion, or a conversation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from tinytf.data.examples.chat import Chat, Example
from tinytf.data.tokenizer import require_unicode
from tinytf.errors import UserError

USUAL_TEXT_FIELD = "text"
"""Another one was asked for by name: then every record is a text."""

KINDS = {"text": "a text", "completions": "a prompt and its completion", "messages": "a conversation (messages)"}


@dataclass(frozen=True)
class Document:
    """One document: what stands for it in messages, and its text as blocks (a list, unless `Shard.is_one_document`).

    Attributes:
        examples: of a prompt and completion, or a conversation: what is read of it, and learned.
        identity: what decides its split and checksum, if that is not the text.
    """

    name: object
    blocks: Iterable[str]
    examples: tuple[Example, ...] = ()
    identity: bytes = b""


@dataclass(frozen=True)
class Records:
    """How the records of a corpus are read, all in one way. Plain values: it travels to other processes.

    Args:
        text_field: holds the text of a record that is a text.
        kind: one of `KINDS`.
        chat: of conversations.
    """

    text_field: str
    kind: str = "text"
    chat: Chat | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that are read."""
        return {"text": (self.text_field,), "completions": ("prompt", "completion")}.get(self.kind, (self.kind,))

    def identity(self) -> dict[str, str]:
        """What the tokens of a record are a function of, beside the record and the tokenizer."""
        kind = {} if self.kind == "text" else {"kind": self.kind}
        template = {"chat_template": hashlib.sha256(self.chat.template.encode()).hexdigest()} if self.chat else {}
        return {"text_field": self.text_field, **kind, **template}

    def require_fields(self, found: Collection[str], where: object) -> None:
        """Refuse a record, or a file of them, that holds something else than the others do."""
        kind = kind_of_record(found, self.text_field)
        if kind != self.kind:
            raise UserError(
                f"{where}: it holds {KINDS[kind]}, but the corpus begins with {KINDS[self.kind]}: a corpus is of one "
                "kind, so divide it"
            )
        for field in self.fields:
            if field not in found:
                names = f"its fields are {', '.join(map(repr, found))}" if found else "it has no field"
                advice = "set --data.text_field" if kind == "text" else "a completion follows a prompt, which may be ''"
                raise UserError(f"{where}: {names}, not {field!r}: {advice}")

    def document(self, record: Any, where: object) -> Document:
        """The document of a record; UserError naming ``where`` it lies, if it is none."""
        if not isinstance(record, dict):
            raise UserError(f"{where}: it is a {type(record).__name__}, not {self.fields[0]!r}: set --data.text_field")
        self.require_fields(record, where)
        if self.kind == "messages":
            if record.get("tools"):  # Left out, the model would learn calls of what it is never shown.
                raise UserError(f"{where}: its tools are not read: leave the field out, or write them into a message")
            return self._conversation(record["messages"], where)
        texts = [_text(record, field, where) for field in self.fields]
        if self.kind == "text":
            return Document(where, texts)
        prompt, completion = texts
        if not completion:
            raise UserError(f"{where}: its completion is empty, so that there is nothing to learn")
        example: Example = ((prompt, False), (completion, True)) if prompt else ((completion, True),)
        return Document(where, texts, (example,), json.dumps(texts).encode())

    def _conversation(self, messages: Any, where: object) -> Document:
        assert self.chat is not None, "asked for when the corpus was found to hold conversations"
        try:
            examples = self.chat.examples(messages)
            identity = json.dumps(messages, sort_keys=True).encode()
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except RecursionError:
            raise UserError(f"{where}: its JSON is nested too deeply") from None
        return Document(where, [text for example in examples for text, _ in example], examples, identity)


def kind_of_record(fields: Collection[str], text_field: str) -> str:
    """What a record with these fields holds: the configured text before anything else."""
    if text_field in fields or text_field != USUAL_TEXT_FIELD:
        return "text"
    if "messages" in fields and not {"prompt", "completion"} <= set(fields):
        return "messages"  # Some data sets repeat the first message as the prompt.
    return "completions" if "prompt" in fields or "completion" in fields else "text"


def _text(record: dict[str, Any], field: str, where: object) -> str:
    value = record[field]
    if not isinstance(value, str):
        found = "null" if value is None else f"{value!r:.40}"
        raise UserError(f"{where}: its field {field!r} holds {found}, not text")
    require_unicode(value, f"{where}: its text")
    return value
