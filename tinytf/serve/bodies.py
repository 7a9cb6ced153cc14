"""What a request may say: the fields of OpenAI's API that tinytf honors, each with its range. Others are refused."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tinytf.errors import UserError
from tinytf.generation.sampling import Sampling
from tinytf.serve.errors import RequestError
from tinytf.utils.files import shorten
from tinytf.utils.text import printable, read_json

MAX_TOKENS = 65_536
"""Generated per completion; what more would be is past every --timeout."""

MAX_SAMPLES = 128
MAX_LOGPROBS = 20

Tokens = list[Annotated[int, Field(ge=0)]]
StopText = Annotated[str, Field(min_length=1, max_length=1_000)]


class StreamOptions(BaseModel):
    """``include_usage`` adds a last chunk with the numbers of tokens."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class Body(BaseModel):
    """What both kinds of completion take. ``seed`` is that of the first sample; sample i takes ``seed + i``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int = Field(1, ge=1, le=MAX_SAMPLES)
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63 - MAX_SAMPLES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Sent by clients with the one value that asks for nothing.
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    user: str | None = None

    @field_validator("temperature", "n", "stream", mode="before")
    @classmethod
    def default_for_null(cls, value: Any, info: Any) -> Any:
        """OpenAI's own types allow null here, for the default."""
        return cls.model_fields[info.field_name].default if value is None else value

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def sampling(self) -> Sampling:
        """RequestError if a value is out of range."""
        try:
            return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)
        except ValueError as error:
            raise RequestError(str(error), param=str(error).partition(" ")[0]) from error


class CompletionBody(Body):
    """Of /v1/completions. A prompt is text or ids, one or a list of them."""

    prompt: str | Tokens | Annotated[list[str | Tokens], Field(min_length=1)] = ""
    max_tokens: int | None = Field(16, ge=0, le=MAX_TOKENS)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @property
    def prompts(self) -> list[str | Tokens]:
        one = isinstance(self.prompt, str) or all(isinstance(each, int) for each in self.prompt)
        return cast("list[str | Tokens]", [self.prompt] if one else self.prompt)


class ChatBody(Body):
    """Of /v1/chat/completions. Messages are checked by the model's template."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=10_000)]
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)


Kind = TypeVar("Kind", bound=Body)


def read_body(content: bytes, kind: type[Kind]) -> Kind:
    """The body of a request.

    Raises:
        RequestError: names the field, what is wrong with it, and what was expected.
    """
    try:
        found = read_json(content, "the body")
    except UserError as error:
        raise RequestError(str(error)) from None
    if not isinstance(found, dict):
        raise RequestError("the body is no JSON object")
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        # Of a union each member has its own: the longest path is that of the member that was meant.
        first = max(error.errors(include_url=False, include_context=False), key=lambda each: len(each["loc"]))
        field = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise RequestError(
                f"{shorten(printable(field), 60)}: this server knows no such field; it knows "
                f"{', '.join(kind.model_fields)}",
                param=field,
            ) from None
        value = shorten(printable(repr(found.get(field))), 60)
        raise RequestError(f"{field} is {value}: {first['msg']}", param=field) from None
