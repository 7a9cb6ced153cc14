"""Who may ask: the Host and Origin of a request, its API key, and what a browser may do with the answer."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinytf.serve.errors import RequestError

OPEN = ("/", "/health", "/page/")
"""Paths that need no key: the page asks for it."""

HEADERS = {
    # The page loads its own files and asks its own server; nothing frames it.
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Refuses what does not come from a client of this server, before anything of it is read.

    A web page that the user looks at can send requests to 127.0.0.1, and, by a name that it makes resolve to
    127.0.0.1 (DNS rebinding), read the answers: so the Host must be the server's own, and an Origin the same.

    Args:
        hosts: names and addresses by which the server may be called; None are any.
        api_key: what ``Authorization: Bearer`` must carry; None asks for none.
        on_answer: told the path and the status of each answer.
    """

    def __init__(
        self, app: ASGIApp, hosts: Collection[str] | None, api_key: str | None, on_answer: Callable[[str, int], None]
    ) -> None:
        self.app, self.hosts, self.api_key, self.on_answer = app, hosts, api_key, on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
                self.on_answer(scope["path"], message["status"])
            await send(message)

        try:
            self._check(scope)
        except RequestError as error:
            headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
            response = JSONResponse(error.body(), error.status, headers)
            await response(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            raise RequestError("Host: this server is not called so; --host names what it is called", 403)
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise RequestError("Origin: pages of other servers may not ask this one", 403)
        path = scope["path"]
        if self.api_key is None or path in OPEN[:2] or path.startswith(OPEN[2]):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self.api_key.encode()):
            raise RequestError("Authorization: give the server's key, as Bearer KEY", 401, code="invalid_api_key")


def _name(host: str) -> str:
    """Of a Host header, without its port; empty for what is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
