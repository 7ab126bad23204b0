"""The engine: a loaded model that answers one request at a time, in the thread that calls it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from compress.errors import UserError
from compress.formats.dense_source import open_any
from compress.runtime.decoding import Decoder
from compress.runtime.generate import from_template, open_model, run, sampling
from compress.text.tokenize import encode, load_tokenizer

from .text_stream import TextStream

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What to go on from, and how.

    Attributes:
        tokens: the prompt's, at least one.
        max_tokens: new tokens at most.
        temperature: 0 takes the likeliest token; None does what the checkpoint says.
        top_p: draw among the likeliest tokens that have this much probability together.
        stop: texts before which the answer ends.
        seed: decides the choices; None draws one.
    """

    tokens: tuple[int, ...]
    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Answered:
    """How an answer ended: at a stop or an end token, or at its last allowed token."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    new_tokens: int


class Engine:
    """A model, its tokenizer and the name that clients know it by.

    Args:
        model: any that generates text.
        tokenizer: the model's.
        name: of the model, in requests and answers.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.name, self._tokenizer, self._decoder = name, tokenizer, Decoder(model)
        self.room: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._ends = _end_tokens(model)
        self._rows: int = model.get_input_embeddings().weight.shape[0]
        # A first text settles the tokenizer's state: from here on it only reads, and several threads may use it.
        encode(tokenizer, "a")

    @property
    def chats(self) -> bool:
        """Whether there is a chat template."""
        return bool(self._tokenizer.chat_template)

    def text_tokens(self, text: str) -> tuple[int, ...]:
        """Tokens of a prompt, with the special tokens that the tokenizer adds by itself.

        Raises:
            UserError: there are none.
        """
        return self._checked(encode(self._tokenizer, text))

    def chat_tokens(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Tokens of a conversation, up to where the assistant's answer begins.

        Raises:
            UserError: no chat template, or one that refuses the messages.
        """
        text = from_template(self._tokenizer, messages, self.name, "ask /v1/completions")
        return self._checked(encode(self._tokenizer, text, special_tokens=False))

    def given_tokens(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Token ids as a client gave them.

        Raises:
            UserError: none, or one that is not in the vocabulary.
        """
        if any(not 0 <= token < self._rows for token in tokens):
            raise UserError(f"The prompt has token ids outside of the vocabulary of {self._rows}.")
        return self._checked(tokens)

    def _checked(self, tokens: Sequence[int]) -> tuple[int, ...]:
        if not tokens:
            raise UserError("The prompt is empty: give a few words to go on from.")
        return tuple(tokens)

    def answer(self, asked: Asked, write: Callable[[str], None], stopped: Callable[[], bool]) -> Answered:
        """Answer a request.

        Args:
            asked: the request.
            write: gets the text piece by piece.
            stopped: asked after every token whether to leave off.

        Raises:
            UserError: settings of the checkpoint that make no sense.
        """
        text = TextStream(self._tokenizer, asked.tokens, asked.stop)
        taken = _Taken(text, write)
        model = self._decoder.model
        settings = _sampling(model, asked) | {
            "max_new_tokens": asked.max_tokens,
            "stopping_criteria": StoppingCriteriaList([_When(lambda: text.stopped or stopped())]),
        }
        if asked.seed is None:
            torch.seed()
        else:
            torch.manual_seed(asked.seed)
        start = run(self._decoder, torch.tensor([asked.tokens]), taken, settings)
        if rest := text.flush():
            write(rest)
        seconds = time.perf_counter() - start
        _LOG.info("%d tokens to a prompt of %d in %.2f s", len(taken.tokens), len(asked.tokens), seconds)
        ended = text.stopped or (bool(taken.tokens) and taken.tokens[-1] in self._ends)
        return Answered("stop" if ended else "length", len(asked.tokens), len(taken.tokens))


def _sampling(model: PreTrainedModel, asked: Asked) -> dict[str, Any]:
    """As the API promises: drawn from all tokens, unless the checkpoint keeps to its likeliest ones."""
    settings = sampling(model, asked.temperature, asked.top_p)
    if settings.get("do_sample") and getattr(model.generation_config, "top_k", None) is None:
        settings["top_k"] = 0
    return settings


def open_engine(
    folder: str | Path,
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    check: bool = False,
) -> Engine:
    """Load a checkpoint to answer with; packed weights stay packed.

    Args:
        folder: a folder or a hub name.
        name: what clients call the model.
        device, dtype: by their names.
        threads: of the CPU; as many as torch takes unless given.
        trust_remote_code: run the Python files of the checkpoint.
        check: hold every tensor against the hashes of ``compress.json`` first.

    Raises:
        UserError: as :func:`compress.load`; also no tokenizer, or a model that does not generate text.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    source = open_any(folder, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(source.path, trust_remote_code=trust_remote_code)
    model = open_model(folder, device, dtype, trust_remote_code=trust_remote_code, check=check)
    return Engine(model, tokenizer, name)


class _Taken(BaseStreamer):
    """Hands new tokens to the text; what ``generate`` hands over first is the prompt."""

    def __init__(self, text: TextStream, write: Callable[[str], None]) -> None:
        self.tokens: list[int] = []
        self._text, self._write, self._begun = text, write, False

    def put(self, value: Tensor) -> None:
        if not self._begun:
            self._begun = True
            return
        (token,) = value.flatten().tolist()
        self.tokens.append(token)
        if piece := self._text.push(token):
            self._write(piece)

    def end(self) -> None:
        """Nothing is left to do."""


class _When(StoppingCriteria):
    """Ends every sequence when a condition holds."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self._condition = condition

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self._condition(), dtype=torch.bool, device=input_ids.device)


def _end_tokens(model: PreTrainedModel) -> frozenset[int]:
    config = model.generation_config
    end = None if config is None else config.eos_token_id
    return frozenset([end] if isinstance(end, int) else end or ())
