"""What clients are told: OpenAI's objects, whole or as events, and its errors."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from .engine import Answered

LAST_EVENT = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Shape:
    """The objects of one answer.

    Attributes:
        model: its name.
        chat: of ``/v1/chat/completions``, or of ``/v1/completions``.
    """

    model: str
    chat: bool
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, answered: Answered) -> dict[str, Any]:
        """The answer in one object."""
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return self._object("", [self._choice(said, answered.reason)]) | {"usage": usage(answered)}

    def first(self) -> dict[str, Any] | None:
        """What a stream begins with."""
        return self._part({"role": "assistant", "content": ""}, None) if self.chat else None

    def piece(self, text: str) -> dict[str, Any]:
        """A piece of a stream's text."""
        return self._part({"content": text} if self.chat else {"text": text}, None)

    def last(self, answered: Answered) -> dict[str, Any]:
        """The end of a stream's text."""
        return self._part({} if self.chat else {"text": ""}, answered.reason)

    def counts(self, answered: Answered) -> dict[str, Any]:
        """What a stream ends with if the client asks for counts."""
        return self._object(".chunk", []) | {"usage": usage(answered)}

    def _part(self, said: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return self._object(".chunk", [self._choice({"delta": said} if self.chat else said, reason)])

    @staticmethod
    def _choice(said: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason}

    def _object(self, suffix: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        prefix, kind = ("chatcmpl", f"chat.completion{suffix}") if self.chat else ("cmpl", "text_completion")
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def usage(answered: Answered) -> dict[str, int]:
    """Counts of tokens."""
    total = answered.prompt_tokens + answered.new_tokens
    return {
        "prompt_tokens": answered.prompt_tokens,
        "completion_tokens": answered.new_tokens,
        "total_tokens": total,
    }


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


@dataclass(eq=False)
class Refusal(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        message: one sentence.
        code, param: OpenAI's words for the kind and for the field that is wrong.
        after: seconds after which to ask again.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    after: int | None = None

    def body(self) -> dict[str, Any]:
        """OpenAI's object of an error."""
        kind = {429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
