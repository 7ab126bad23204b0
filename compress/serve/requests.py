"""What clients ask: the fields of OpenAI's API that are offered; any other that would change the answer is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "parallel_tool_calls",
    }
)
"""Fields that change no answer."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
}
"""Fields that are not offered → the values of them that ask for nothing."""


def _of_characters(text: str) -> str:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("half of a surrogate pair is no character")
    return text


Text = Annotated[str, AfterValidator(_of_characters)]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]
Tokens = Annotated[int, Field(ge=1, le=1 << 31)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    """What a stream tells besides the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Common(_Strict):
    """The fields of both requests."""

    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    max_tokens: Tokens | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_offered(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {key: value for key, value in data.items() if value is not None and key not in IGNORED}
        for key, allowed in NEUTRAL.items():
            if key in kept and kept.pop(key) not in allowed:
                raise ValueError(f"'{key}' is not offered here: leave it out")
        return kept

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return self.stream_options.include_usage


class CompletionRequest(Common):
    """The body of ``/v1/completions``: a text or token ids to go on from."""

    prompt: Text | list[int] | list[Text] | list[list[int]]

    @property
    def only_prompt(self) -> str | list[int] | None:
        """The prompt; None where there are several or none."""
        if isinstance(self.prompt, str):
            return self.prompt
        if self.prompt and isinstance(self.prompt[0], int):
            return [token for token in self.prompt if isinstance(token, int)]
        (first, *rest) = self.prompt or [None]
        return None if rest or isinstance(first, int) else first


class TextPart(_Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Common):
    """The body of ``/v1/chat/completions``: a conversation to answer."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None

    @property
    def most_tokens(self) -> int | None:
        """New tokens at most, by either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
