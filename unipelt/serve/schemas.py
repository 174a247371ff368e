"""What a request may hold. What the server does not do is refused, never left out in silence: a field that asks for nothing is taken."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

#: A field of OpenAI's that is taken where it asks for nothing.
_Nothing = Literal[None, False, 0]
_Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=False)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: Annotated[str, Field(min_length=1, max_length=512)]
    user: str | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class Continued(_Request):
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False, strict=False)] | None = None
    top_p: _Fraction | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[None, 1] = None
    presence_penalty: _Nothing = None
    frequency_penalty: _Nothing = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> list[str]:
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [s for s in found if s]


class Completions(Continued):
    """`POST /v1/completions`"""

    prompt: (
        StrictStr
        | Annotated[list[StrictInt], Field(min_length=1)]
        | Annotated[list[StrictStr], Field(min_length=1)]
        | Annotated[list[Annotated[list[StrictInt], Field(min_length=1)]], Field(min_length=1)]
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: _Nothing = None
    echo: _Nothing = None
    best_of: Literal[None, 1] = None
    suffix: None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        p: Any = self.prompt
        return [p] if isinstance(p, str) or isinstance(p[0], int) else p


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | Annotated[list[Part], Field(min_length=1)]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": self.role, "content": text, **({"name": self.name} if self.name else {})}


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]


class Chat(Continued):
    """`POST /v1/chat/completions`"""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: _Nothing = None
    top_logprobs: _Nothing = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None


class Predict(_Request):
    """`POST /predict`: a text for each input, or a text for each of the task's columns, in their order or by their names."""

    inputs: Annotated[list[str | list[str] | dict[str, str]], Field(min_length=1)]
    truncate: bool = False
