"""Tokens to text as they come: whole characters only, and nothing of what may turn out to be a stop."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_BEFORE = 5
"""Tokens of the prompt that are decoded along: whether the first new one begins with a space hangs on what is before it."""
_UNFINISHED = "\ufffd"


class TextStream:
    """Decodes token by token.

    Args:
        tokenizer: the model's.
        prompt: its tokens.
        stops: texts before which the answer ends; none is empty.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stops: Sequence[str] = ()
    ) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._ids = list(prompt[-_BEFORE:])
        self._begin, self._read = 0, len(self._ids)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take a token; returns the text that is certain by now, maybe none."""
        if self.stopped:
            return ""
        self._ids.append(token)
        return self._release(self._decoded(last=False))

    def flush(self) -> str:
        """Return what is left at the end of the answer."""
        if self.stopped:
            return ""
        text = self._release(self._decoded(last=True)) + self._held
        self._held = ""
        return text

    def _decoded(self, *, last: bool) -> str:
        before, text = self._text(self._begin, self._read), self._text(self._begin, len(self._ids))
        if not last and (text.endswith(_UNFINISHED) or len(text) <= len(before)):
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return text[len(before) :]

    def _text(self, begin: int, end: int) -> str:
        return str(
            self._tokenizer.decode(
                self._ids[begin:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _release(self, text: str) -> str:
        self._held += text
        if found := [place for stop in self._stops if (place := self._held.find(stop)) >= 0]:
            done = self._held[: min(found)]
            self.stopped, self._held = True, ""
            return done
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        end = len(self._held) - keep
        done, self._held = self._held[:end], self._held[end:]
        return done


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` with which ``stop`` begins."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)
