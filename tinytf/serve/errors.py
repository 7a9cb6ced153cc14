"""Why a request is refused, as OpenAI's clients read it."""

from __future__ import annotations

from typing import Any


class RequestError(Exception):
    """What is wrong with a request, or why it cannot be answered now.

    Args:
        message: what, where, and what to do.
        status: of HTTP.
        param: the field of the body.
        code: OpenAI's own word for it, where there is one.
        retry_after: seconds after which to try again.
    """

    def __init__(
        self, message: str, status: int = 400, *, param: str | None = None, code: str | None = None,
        retry_after: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}
