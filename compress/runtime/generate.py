"""Text from a checkpoint, as it comes, and how fast it came."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer, set_seed
from transformers.generation.streamers import BaseStreamer

from compress.assets import EMBEDDED, embedded_model
from compress.errors import UserError
from compress.formats.dense_source import open_any
from compress.runtime.decoding import Decoder
from compress.runtime.load import load
from compress.system.device import resolve_device, wanted_dtype
from compress.system.monitor import Monitor, anonymous_bytes
from compress.text.tokenize import encode, load_tokenizer

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generated:
    """What came of a prompt.

    Attributes:
        text: without the prompt.
        prompt_tokens, new_tokens: how many there are of each.
        prefill_seconds: until the first new token; decode_seconds: for all tokens after it.
        memory_bytes: what the process holds beyond its imports when it is done (on a GPU, what torch holds there).
        peak_bytes: the most that it held at any time.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    memory_bytes: int | None
    peak_bytes: int | None

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second after the first one."""
        return (self.new_tokens - 1) / self.decode_seconds if self.new_tokens > 1 else None

    @property
    def prefill_rate(self) -> float:
        """Tokens of the prompt per second."""
        return self.prompt_tokens / self.prefill_seconds


@dataclass
class Clock(BaseStreamer):
    """Notes when each token arrives; what ``generate`` hands over first is the prompt."""

    times: list[float] = field(default_factory=list)

    def put(self, value: Tensor) -> None:
        """Note the time at which a token came."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""

    @property
    def new_tokens(self) -> int:
        """New tokens that have come, of each sequence."""
        return len(self.times) - 1


class _Stream(TextStreamer):
    """Words to ``write`` as soon as they are whole."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None], clock: Clock
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write, self._clock, self.parts = write, clock, list[str]()

    def put(self, value: Tensor) -> None:
        self._clock.put(value)
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.parts.append(text)
        self._write(text)


def generate(
    path: str | Path,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    temperature: float | None = None,
    seed: int = 0,
    chat: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    check: bool = False,
    write: Callable[[str], None] = lambda text: None,
) -> Generated:
    """Continue a prompt.

    Args:
        path: a folder, a hub name or ``"embedded"``.
        temperature: 0 takes the likeliest token; ``None`` does what the checkpoint's ``generation_config.json`` says.
        chat: the prompt is a user's message, put into the tokenizer's chat template.
        threads: of the CPU; as many as torch takes unless given.
        check: hold every tensor against the hashes of ``compress.json`` first.
        write: gets the text piece by piece.

    Raises:
        UserError: a prompt of no tokens or more than the model takes, no tokenizer, a model that cannot generate.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    folder = embedded_model() if str(path) == EMBEDDED else path
    source = open_any(folder, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(source.path, trust_remote_code=trust_remote_code)
    tokens = _encode(tokenizer, prompt, chat, source.path)
    with Monitor() as monitor:
        base = anonymous_bytes()
        model = open_model(folder, device, dtype, trust_remote_code=trust_remote_code, check=check)
        check_length(model, tokens.shape[1], max_new_tokens)
        set_seed(seed)
        clock = Clock()
        stream = _Stream(tokenizer, write, clock)
        settings = sampling(model, temperature) | {"max_new_tokens": max_new_tokens}
        _LOG.info("reading the prompt")
        start = run(Decoder(model), tokens, stream, settings)
        held = memory_now(model.device, base)
    times = clock.times
    return Generated(
        text="".join(stream.parts),
        prompt_tokens=tokens.shape[1],
        new_tokens=clock.new_tokens,
        prefill_seconds=times[1] - start,
        decode_seconds=times[-1] - times[1],
        memory_bytes=held,
        peak_bytes=max(held, monitor.peak or 0) if held is not None else None,
    )


def open_model(
    folder: str | Path, device: str, dtype: str, *, trust_remote_code: bool = False, check: bool = False
) -> PreTrainedModel:
    """The model on a device, in a dtype by its name.

    Raises:
        UserError: as :func:`compress.load`; also a model that does not generate text.
    """
    target = resolve_device(device)
    source = open_any(folder, trust_remote_code=trust_remote_code)
    wanted = wanted_dtype(dtype, source.config, target.type)
    model = load(folder, dtype=wanted, device=target, trust_remote_code=trust_remote_code, check=check)
    if not model.can_generate():
        raise UserError(f"{folder}: a {type(model).__name__} does not generate text")
    return model


def check_length(model: PreTrainedModel, prompt: int, new: int) -> None:
    """Refuse more tokens than the model has positions for."""
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and prompt + new > room:
        raise UserError(
            f"{prompt} tokens and {new} new ones are more than the {room} that this model takes: "
            "shorten the prompt or ask for fewer"
        )


def run(decoder: Decoder, tokens: Tensor, streamer: BaseStreamer, settings: dict[str, Any]) -> float:
    """Generate from ``tokens`` ``[batch, length]``; returns the time at which it began, by ``time.perf_counter``.

    Raises:
        UserError: settings of the checkpoint that make no sense.
    """
    model = decoder.model
    inputs = tokens.to(model.device)
    beams = settings.get("num_beams") or getattr(model.generation_config, "num_beams", None) or 1
    start = time.perf_counter()
    try:
        with (
            torch.inference_mode(),
            decoder.generating(
                inputs.shape[0], inputs.shape[1], settings["max_new_tokens"], beams, streamer
            ) as extra,
        ):
            model.generate(
                inputs, attention_mask=torch.ones_like(inputs), streamer=streamer, **settings, **extra
            )
    except (
        TypeError,
        ValueError,
        AttributeError,
        KeyError,
    ) as error:  # what transformers makes of such settings
        raise UserError(
            f"generation fails with the settings of the checkpoint ({str(error)[:200]}): correct generation_config.json"
        ) from error
    return start


def memory_now(device: torch.device, base: int | None) -> int | None:
    """Bytes that are held: on a GPU by torch, else by the process beyond ``base``; ``None`` where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    now = anonymous_bytes()
    return None if now is None or base is None else now - base


def from_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], name: object, instead: str
) -> str:
    """Put messages into the tokenizer's chat template, up to where the answer begins.

    Args:
        tokenizer: the model's.
        messages: each a ``role`` and a ``content``.
        name: what the model is called in error sentences.
        instead: what to do where there is no template.

    Raises:
        UserError: no chat template, or one that refuses the messages.
    """
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of {name} has no chat template: {instead}")
    given: list[Any] = [dict(message) for message in messages]
    try:
        return str(tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of the checkpoint's author: it may raise anything
        raise UserError(f"the chat template of {name} refuses the prompt: {str(error)[:200]}") from error


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool, folder: object) -> Tensor:
    if chat:
        message = [{"role": "user", "content": prompt}]
        prompt = from_template(tokenizer, message, folder, "leave --chat out")
    tokens = encode(tokenizer, prompt, special_tokens=not chat)
    if not tokens:
        raise UserError("the prompt is empty: give a few words to go on from")
    return torch.tensor([tokens], dtype=torch.int64)


def sampling(
    model: PreTrainedModel, temperature: float | None = None, top_p: float | None = None
) -> dict[str, Any]:
    """Settings for :func:`run` that choose tokens as asked, and as the checkpoint says where nothing is.

    Args:
        model: the model that will be run.
        temperature: 0 takes the likeliest token.
        top_p: the share of probability of the tokens that are drawn from.
    """
    config = model.generation_config or GenerationConfig()
    settings: dict[str, Any] = {}
    if temperature is not None:
        settings = {"do_sample": temperature > 0}
        # Greedy decoding has no use for these; a checkpoint that sets them would be warned about.
        settings |= (
            {"temperature": temperature} if temperature else dict.fromkeys(("temperature", "top_p", "top_k"))
        )
    if top_p is not None and temperature != 0:
        settings |= {"do_sample": True, "top_p": top_p}
    if config.pad_token_id is None:
        end = config.eos_token_id
        settings["pad_token_id"] = end[0] if isinstance(end, list) else end if end is not None else 0
    return settings
