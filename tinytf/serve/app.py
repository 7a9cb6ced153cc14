"""The application: its routes, and the life of a request from its body to the last byte of its answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from tinytf.errors import UserError
from tinytf.serve.answers import answer_chunks, event, whole_answer
from tinytf.serve.bodies import Body, ChatBody, CompletionBody, Kind, read_body
from tinytf.serve.errors import RequestError
from tinytf.serve.guard import Guard
from tinytf.serve.job import Job, chat_job, completion_job
from tinytf.serve.metrics import Metrics
from tinytf.serve.models import LoadedModel, Models

PAGE = Path(__file__).parent / "page"

MAX_BODY = 1 << 20
"""Bytes of a request; a prompt of 8,192 tokens as ids has 60 thousand."""

BODY_SECONDS = 30
"""In which a request's body has come whole."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a server lets its clients do.

    Args:
        hosts: names by which it may be called; None are any.
        api_key: None asks for none.
        timeout: seconds from a request's arrival to the end of its texts.
    """

    hosts: Collection[str] | None
    api_key: str | None
    timeout: float


class Application:
    """Routes and what they share."""

    def __init__(self, models: Models, limits: Limits) -> None:
        self.models, self.limits = models, limits
        self.metrics = Metrics(models)
        self.loading = asyncio.Lock()
        self.asgi = Starlette(
            routes=[
                Route("/", self.page),
                Route("/health", self.health),
                Route("/metrics", self.show_metrics),
                Route("/v1/models", self.list_models),
                Route("/v1/models/{name}", self.one_model),
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
                Mount("/page", StaticFiles(directory=PAGE)),
            ],
            middleware=[Middleware(Guard, hosts=limits.hosts, api_key=limits.api_key, on_answer=self.metrics.answered)],
            exception_handlers={
                RequestError: refused, HTTPException: not_found, ClientDisconnect: nobody, Exception: failed,
            },
        )  # fmt: skip

    async def page(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": self.models.default})

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def list_models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": self.models.describe()})

    async def one_model(self, request: Request) -> Response:
        found = [entry for entry in self.models.describe() if entry["id"] == request.path_params["name"]]
        if not found:
            raise RequestError("model: this server has none of that name", 404, param="model", code="model_not_found")
        return JSONResponse(found[0])

    async def completions(self, request: Request) -> Response:
        return await self.answer(request, CompletionBody, completion_job)

    async def chat_completions(self, request: Request) -> Response:
        return await self.answer(request, ChatBody, chat_job)

    async def answer(
        self, request: Request, kind: type[Kind], make: Callable[[LoadedModel, Kind, float], Job]
    ) -> Response:
        """Decode what a request asks for; whole, or as a stream."""
        body = read_body(await self.content(request), kind)
        job = make(await self.model(body), body, self.limits.timeout)
        job.start()
        answer = Answer(job, self.metrics)
        return answer if body.stream else await answer.whole(request.receive)

    async def content(self, request: Request) -> bytes:
        """The body; RequestError if it is not JSON by its type, too long, or slow."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # Which a page of another server cannot send without asking first.
            raise RequestError("Content-Type: it must be application/json", 415)
        content = bytearray()

        async def read() -> None:
            async for chunk in request.stream():
                content.extend(chunk)
                if len(content) > MAX_BODY:
                    raise RequestError(f"the body has more than the {MAX_BODY:,} bytes that it may have", 413)

        try:
            await asyncio.wait_for(read(), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise RequestError(f"the body did not come within {BODY_SECONDS} seconds", 408) from None
        return bytes(content)

    async def model(self, body: Body) -> LoadedModel:
        """The one that is asked for; read from disk in another thread, while the others go on."""
        async with self.loading:
            if body.model is None or body.model in self.models.loaded:
                return self.models.get(body.model)
            try:
                return await asyncio.to_thread(self.models.get, body.model)
            except UserError as error:
                log.error("model %s: %s", body.model, error)
                raise RequestError(f"model: {body.model} cannot be read; the server's stderr says why", 500) from None


class Answer(Response):
    """A stream of server-sent events; a client that goes away takes its texts with it.

    Starlette's own StreamingResponse sees a client go only when something is sent to it.
    """

    def __init__(self, job: Job, metrics: Metrics) -> None:
        self.job, self.metrics = job, metrics
        self.background = None
        self.status_code = 200

    async def whole(self, receive: Receive) -> Response:
        """The answer as one object."""
        content = asyncio.ensure_future(whole_answer(self.job))
        await self._until_gone(content, receive)
        return JSONResponse(content.result())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientDisconnect):  # There is nobody to tell.
            await self._until_gone(asyncio.ensure_future(self._stream(send)), receive)

    async def _until_gone(self, work: asyncio.Future[Any], receive: Receive) -> None:
        """Wait for the work, as long as there is a client; ClientDisconnect if it goes."""
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            # A client that reads slowly holds its stream no longer than two timeouts.
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED, timeout=2 * self.job.timeout)
            if not work.done():
                raise ClientDisconnect
            work.result()
        finally:
            work.cancel()
            gone.cancel()
            self.job.cancel()
            self.metrics.count(self.job)

    async def _stream(self, send: Send) -> None:
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store",
                   "x-accel-buffering": "no"}  # fmt: skip
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        try:
            async for chunk in answer_chunks(self.job):
                await send({"type": "http.response.body", "body": chunk.encode(), "more_body": True})
        except RequestError as error:  # The status is sent: what went wrong can only come as an event.
            await send({"type": "http.response.body", "body": event(error.body()).encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = None if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return JSONResponse(error.body(), error.status, headers)


async def not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(RequestError(error.detail, error.status_code).body(), error.status_code, error.headers)


async def nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx' number; it reaches nobody.


async def failed(request: Request, error: Exception) -> Response:
    """A failure of ours: its traceback goes to stderr, as Starlette raises it again."""
    return JSONResponse(RequestError("the server failed; its stderr says how", 500).body(), 500)
