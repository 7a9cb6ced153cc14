"""One request as texts to decode: from a checked body to what is new in each text."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from tinytf.errors import UserError
from tinytf.generation.streaming import TextStream
from tinytf.serve.bodies import Body, ChatBody, CompletionBody
from tinytf.serve.errors import RequestError
from tinytf.serve.models import LoadedModel
from tinytf.serve.scheduler import ClosedError, Likelihood, QueueFullError, Text

PAUSE = 0.01
"""Seconds between two events of a stream: tokens that come faster share one. An event a token takes the decoding thread
the time of a second token at 1,400 tokens/s."""


@dataclass(frozen=True)
class Token:
    """A token of an answer; ``offset`` is where its piece begins in the answer's text."""

    id: int
    piece: str
    offset: int
    likelihood: Likelihood | None


@dataclass(eq=False)
class Choice:
    """One text of an answer, read piece by piece while it is decoded.

    Args:
        prompt_tokens: what an answer with echo begins with.
        prompt_text: the text of these.
    """

    index: int
    text: Text
    prompt_text: str = ""
    prompt_tokens: list[Token] = field(default_factory=list)
    begun: bool = False
    _characters: int = 0
    _tokens: int = 0
    _offset: int = 0

    def take(self, done: bool) -> tuple[str, list[Token], str | None]:
        """What is new since the last call: text, the tokens that it shows whole, and, if it is done, the finish reason.

        ``done`` is what the text said before: it may end while it is read. Tokens come with their text, which waits for
        the rest of a character and for what may become a stop string. The tokens of a stop string never come.
        """
        text = self.text
        # First: the decoding thread writes it last.
        shown = text.completion.text
        new, tokens = shown[self._characters :], []
        if not self.begun:
            new, self.begun = self.prompt_text + new, True
            tokens += self._prompt_tokens_scored()
        self._characters = len(shown)
        while self._tokens < len(text.completion.pieces):
            piece = text.completion.pieces[self._tokens]
            if self._offset + len(piece) > len(shown) and not (done and self._offset < len(shown)):
                break
            likelihood = text.likelihoods[self._scored + self._tokens] if text.top is not None else None
            tokens.append(Token(text.ids[self._tokens], piece, len(self.prompt_text) + self._offset, likelihood))
            self._tokens += 1
            self._offset += len(piece)
        finish = text.completion.finish if done else None
        return new, tokens, finish and ("length" if finish == "length" else "stop")

    @property
    def _scored(self) -> int:
        return len(self.text.prompt) if self.text.score_prompt else 0

    def _prompt_tokens_scored(self) -> list[Token]:
        found = self.text.likelihoods
        return [
            Token(token.id, token.piece, token.offset, found[number] if number < len(found) else None)
            for number, token in enumerate(self.prompt_tokens)
        ]


@dataclass(eq=False)
class Job:
    """All texts of a request.

    Attributes:
        changed: set when there is something new to send: of a stream each token, else the end of the last text.
    """

    model: LoadedModel
    body: Body
    timeout: float
    choices: list[Choice] = field(default_factory=list)
    created: int = field(default_factory=lambda: int(time.time()))
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    prompt_tokens: int = 0
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def notify(self) -> None:
        """Called by the decoding thread, which has written what is new."""
        # If it is set, whoever clears it reads the texts after that.
        if (self.body.stream or self.done) and not self.changed.is_set():
            with contextlib.suppress(RuntimeError):  # The server was made to end, and with it its loop.
                self.loop.call_soon_threadsafe(self.changed.set)

    @property
    def texts(self) -> list[Text]:
        return [choice.text for choice in self.choices]

    @property
    def done(self) -> bool:
        return all(text.done for text in self.texts)

    @property
    def completion_tokens(self) -> int:
        return sum(text.completion.tokens for text in self.texts)

    def start(self) -> None:
        """Queue the texts.

        Raises:
            RequestError: if there is no room for them, or the server stops.
        """
        scheduler = self.model.scheduler
        most = scheduler.max_batch + scheduler.max_queue
        if len(self.texts) > most:
            raise RequestError(
                f"the request asks for {len(self.texts)} texts, more than the {most} that this server takes at once "
                "(--max_batch and --max_queue): send fewer prompts, or a lower n", param="n",
            )  # fmt: skip
        try:
            scheduler.add(self.texts)
        except QueueFullError:
            raise RequestError(
                "as many texts wait as may (--max_queue): try again later", 429, code="queue_full", retry_after=1
            ) from None
        except ClosedError:
            raise RequestError("the server stops: try again later", 503, retry_after=5) from None

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.model.scheduler.cancel(self.texts)

    async def changes(self) -> AsyncIterator[list[tuple[Choice, bool]]]:
        """The texts that go on, and whether they are done, each time that some have gone on, until all are.

        Raises:
            RequestError: if a text could not be decoded to its end.
        """
        left = list(self.choices)
        while left:
            await self.changed.wait()
            self.changed.clear()
            ended = [choice for choice in left if choice.text.done]
            for choice in ended:
                self._raise_error(choice.text.error)
            yield [(choice, choice in ended) for choice in left]
            left = [choice for choice in left if choice not in ended]
            if left:
                await asyncio.sleep(PAUSE)

    def _raise_error(self, error: Exception | None) -> None:
        if isinstance(error, TimeoutError):
            raise RequestError(
                f"the text was not complete after {self.timeout:g} seconds (--timeout): lower max_tokens, or stream",
                504, code="timeout",
            )  # fmt: skip
        if isinstance(error, FloatingPointError):
            raise RequestError(f"{error}: the model's training diverged", 500) from error
        if error is not None:
            raise error


def completion_job(model: LoadedModel, body: CompletionBody, timeout: float) -> Job:
    """The texts of /v1/completions: of each prompt ``n``, one after the other.

    Raises:
        RequestError: if a prompt cannot be read.
    """
    if body.max_tokens == 0 and not body.echo:
        raise RequestError(
            "max_tokens is 0, which asks for nothing: give echo, for the prompt's own", param="max_tokens"
        )
    job = Job(model, body, timeout)
    for prompt in body.prompts:
        ids = _prompt_ids(model, prompt)
        text, tokens = _prompt_pieces(model, ids, prompt) if body.echo else ("", [])
        _add_choices(job, ids, body.max_tokens if body.max_tokens is not None else 16, body.logprobs)
        for choice in job.choices[-body.n :]:
            choice.prompt_text, choice.prompt_tokens = text, tokens
            choice.text.score_prompt = bool(tokens) and body.logprobs is not None
    return job


def chat_job(model: LoadedModel, body: ChatBody, timeout: float) -> Job:
    """The texts of /v1/chat/completions: ``n`` answers.

    Raises:
        RequestError: if the model has no chat template, or the messages are none of it.
    """
    generator = model.generator
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise RequestError("max_tokens and max_completion_tokens are two names of one thing: leave one out")
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    try:
        conversation = model.conversation
        if conversation is None:
            raise RequestError(f"model: {model.name} has no chat template; use /v1/completions", param="model")
        ids = conversation.encode(body.messages)
    except UserError as error:
        raise RequestError(str(error), param="messages") from error
    _require_room(model, ids, "messages")
    asked = body.max_tokens if body.max_tokens is not None else body.max_completion_tokens
    room = max(1, generator.engine.max_seq_len - len(ids))
    job = Job(model, body, timeout)
    top = (body.top_logprobs or 0) if body.logprobs else None
    _add_choices(job, ids, room if asked is None else asked, top, conversation.ends)
    return job


def _add_choices(
    job: Job, ids: list[int], max_tokens: int, top: int | None, ends: dict[int, str] | None = None
) -> None:
    body, deadline = job.body, time.monotonic() + job.timeout
    seed = secrets.randbits(62) if body.seed is None else body.seed
    sampling = body.sampling()
    for sample in range(body.n):
        completion = job.model.generator.start_completion(ids, seed + sample, body.stops, ends)
        text = Text(ids, completion, sampling, max_tokens, top, False, deadline, job.notify)
        job.choices.append(Choice(len(job.choices), text))
    job.prompt_tokens += len(ids)


def _prompt_ids(model: LoadedModel, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        try:
            ids = model.generator.encode_prompt(prompt)
        except UserError as error:
            raise RequestError(f"prompt: {error}", param="prompt") from error
    else:
        ids = prompt
        most = model.generator.engine.vocab_size
        if not ids:
            raise RequestError("prompt: it holds no id; an empty text starts from the model's own", param="prompt")
        if max(ids) >= most:
            raise RequestError(f"prompt: id {max(ids)} is not below vocab_size {most}", param="prompt")
    _require_room(model, ids, "prompt")
    return ids


def _require_room(model: LoadedModel, ids: Sequence[int], param: str) -> None:
    most = model.generator.engine.max_seq_len
    if len(ids) > most:
        raise RequestError(
            f"{param}: {len(ids):,} tokens, more than the {most:,} of the model's context (max_seq_len): shorten it",
            param=param, code="context_length_exceeded",
        )  # fmt: skip


def _prompt_pieces(model: LoadedModel, ids: list[int], prompt: str | list[int]) -> tuple[str, list[Token]]:
    if prompt == "":  # What it starts from is no text of the client's; its id is one to go on from.
        return "", [Token(token, "", 0, None) for token in ids]
    stream, tokens, offset = TextStream(model.generator.tokenizer, []), [], 0
    for token in ids:
        piece = stream.add(token)
        tokens.append(Token(token, piece, offset, None))
        offset += len(piece)
    text = "".join(token.piece for token in tokens) + stream.finish()
    return prompt if isinstance(prompt, str) else text, tokens
