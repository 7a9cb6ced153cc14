"""A conversation with a model, by its tokenizer's chat template."""

from __future__ import annotations

from datetime import date

from tokenizers import Tokenizer

from tinytf.data.examples.chat import Chat, Message, special_encoder
from tinytf.data.examples.sandbox import bounded


class Conversation:
    """Turns of a user and of a model, as ids to answer.

    Attributes:
        ends: the ids at which an answer ends, each with what `Completion.finish` says then: any special token, for
            none is part of an answer.

    Raises:
        UserError: for a template that fails, or ends an answer with no special token.
    """

    def __init__(self, template: str, tokenizer: Tokenizer) -> None:
        self._chat = Chat.of(template, tokenizer)
        self._encode = special_encoder(tokenizer)
        self._messages: list[Message] = []
        self.ends = self._chat.ends(tokenizer)

    def ask(self, text: str) -> list[int]:
        """The ids of the conversation so far and of this message, up to where the answer begins.

        Raises:
            UserError: if the template fails, or the text holds that of a special token.
        """
        return self.encode([*self._messages, {"role": "user", "content": text}])

    def encode(self, messages: list[Message]) -> list[int]:
        """The ids of any conversation, up to where the answer begins; errors as those of `ask`."""
        messages = self._chat.require_messages(messages)
        with bounded():
            rendered = self._chat.render(messages, add_generation_prompt=True, today=date.today())
        return [int(number) for number in self._encode(rendered, "the conversation")]

    def add(self, text: str, answer: str) -> None:
        """Keep a message and its answer for the next."""
        self._messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
