"""OpenAI's objects: what is new in a job's texts, as completions, chat completions, and the chunks of both."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

from tinytf.serve.bodies import ChatBody
from tinytf.serve.job import Choice, Job, Token


async def whole_answer(job: Job) -> dict[str, Any]:
    """The answer when all texts have ended. RequestError if one cannot be decoded to its end."""
    async for _ in job.changes():
        pass
    head, chat = _head(job), isinstance(job.body, ChatBody)
    choices = [_choice(job, choice, True, chunk=False) for choice in job.choices]
    return {
        **head,
        "object": "chat.completion" if chat else "text_completion",
        "choices": choices,
        "usage": _usage(job),
    }


async def answer_chunks(job: Job) -> AsyncIterator[str]:
    """The answer as server-sent events, a choice each, up to ``[DONE]``.

    Raises:
        RequestError: if a text cannot be decoded to its end.
    """
    chat = isinstance(job.body, ChatBody)
    head = {**_head(job), "object": "chat.completion.chunk" if chat else "text_completion"}
    with_usage = job.body.stream_options is not None and job.body.stream_options.include_usage
    if with_usage:  # As OpenAI's: null in all chunks but the last.
        head["usage"] = None
    async for choices in job.changes():
        for choice, done in choices:
            first = not choice.begun
            chunk = _choice(job, choice, done, chunk=True)
            if first or chunk["finish_reason"] or _says_something(chunk):
                yield event({**head, "choices": [chunk]})
    if with_usage:
        yield event({**head, "choices": [], "usage": _usage(job)})
    yield "data: [DONE]\n\n"


def event(content: Any) -> str:
    """A server-sent event. As ASCII: JSON in it has no line feed, and U+2028 divides no line."""
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"


def _head(job: Job) -> dict[str, Any]:
    prefix = "chatcmpl" if isinstance(job.body, ChatBody) else "cmpl"
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "created": job.created, "model": job.model.name}


def _usage(job: Job) -> dict[str, int]:
    read, written = job.prompt_tokens, job.completion_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _says_something(chunk: dict[str, Any]) -> bool:
    return bool(chunk.get("text") or chunk.get("delta", {}).get("content") or chunk["logprobs"])


def _choice(job: Job, choice: Choice, done: bool, *, chunk: bool) -> dict[str, Any]:
    """What is new in a choice, as an object of the API."""
    first = not choice.begun
    text, tokens, finish = choice.take(done)
    found: dict[str, Any] = {"index": choice.index, "finish_reason": finish, "seed": choice.text.completion.seed}
    scored = choice.text.top is not None and (tokens or not chunk)
    if not isinstance(job.body, ChatBody):
        return {**found, "text": text, "logprobs": _logprobs(job, tokens) if scored else None}
    logprobs = {"content": [_chat_logprob(job, token) for token in tokens], "refusal": None} if scored else None
    message = {"role": "assistant"} if first or not chunk else {}
    if text or first or not chunk:
        message["content"] = text
    return {**found, "delta" if chunk else "message": message, "logprobs": logprobs}


def _logprobs(job: Job, tokens: list[Token]) -> dict[str, Any]:
    """The lists of /v1/completions; ``token_ids`` and ``top_ids`` are tinytf's own, as texts of tokens may be equal."""
    found = [token.likelihood for token in tokens]
    places = [None if each is None or each.logprob is None else each.likeliest for each in found]
    return {
        "tokens": [token.piece for token in tokens],
        "token_ids": [token.id for token in tokens],
        "token_logprobs": [None if each is None else each.logprob for each in found],
        "top_logprobs": [
            # Of equal texts the most probable one stays; the likeliest comes first.
            None
            if place is None
            else dict(
                sorted(
                    {job.model.piece(number): value for number, value in reversed(place)}.items(),
                    key=lambda pair: -pair[1],
                )
            )
            for place in places
        ],
        "top_ids": [
            None if place is None else [[number, value, job.model.piece(number)] for number, value in place]
            for place in places
        ],
        "text_offset": [token.offset for token in tokens],
    }


def _chat_logprob(job: Job, token: Token) -> dict[str, Any]:
    likelihood = token.likelihood
    assert likelihood is not None
    assert likelihood.logprob is not None
    return {
        **_token_entry(token.piece, likelihood.logprob),
        "top_logprobs": [_token_entry(job.model.piece(number), value) for number, value in likelihood.likeliest],
    }


def _token_entry(piece: str, logprob: float) -> dict[str, Any]:
    return {"token": piece, "logprob": logprob, "bytes": list(piece.encode("utf-8", "replace"))}
