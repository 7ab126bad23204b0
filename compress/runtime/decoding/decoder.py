"""The loop of ``generate`` with a recorded step in the place of the model, where that computes the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from compress_kernels import native
from compress_kernels.forward import quick_forward
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.streamers import BaseStreamer

from compress.system.monitor import return_free_memory

from .cache import BufferedCache
from .norms import rms_norms
from .processors import quick
from .program import Program
from .step import PlainStep

_LOG = logging.getLogger(__name__)

CHECKED = 4
"""Steps whose logits are compared with the model's before the recorded step takes over."""

WORTH = 16
"""New tokens from which on recording is worth its time."""

_TOLERANCE = {torch.bfloat16: 0.02, torch.float32: 1e-5}
"""Largest divergence (KL, nats) of the kernels' step from the model's, in each dtype."""

_MOVES = 4
"""How often a token is moved by last bits, to see what roundings are worth."""

_BLOCK = 256
_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


class Decoder:
    """Decodes with a model, by a recorded step where it can.

    The step is recorded at the first token after a prompt and compared with the model's logits for the next :data:`CHECKED`
    tokens. A model that it does not fit (experts that are chosen by the token, states other than keys and values, attention
    with sinks, more than one sequence) decodes by its own code; ``note`` says why. The cache is kept for the next prompt.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.note = _reason(model)
        self.program: Program | None = None
        self._plain: PlainStep | None = None
        self._cache: BufferedCache | None = None
        self._checked = 0

    @contextmanager
    def generating(
        self, batch: int, prompt: int, new: int, beams: int = 1, streamer: BaseStreamer | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yields arguments for ``model.generate``, with which it decodes by the recorded step.

        Args:
            batch: sequences. prompt: tokens of each. new: tokens to come, at most. beams: of a beam search.
            streamer: the one that ``generate`` is given; it hands none on to a loop that is not its own.
        """
        settings = self._settings(batch, prompt, new, beams, streamer)
        try:
            # Around a loop of its own the prompt alone: at every token it would be in the way.
            with nullcontext() if settings else quick_forward():
                yield settings
        finally:
            return_free_memory()  # what the prompt's pass was computed in

    def _settings(
        self, batch: int, prompt: int, new: int, beams: int, streamer: BaseStreamer | None
    ) -> dict[str, Any]:
        """What :meth:`generating` yields: nothing where the model's own code decodes."""
        if self.note is not None or batch != 1 or beams != 1 or new < WORTH or not _one_by_one(self.model):
            return {}
        if self._cache is None or self._cache.capacity < prompt + new:
            capacity = -(-(prompt + new) // _BLOCK) * _BLOCK
            self._cache = BufferedCache(self.model.config.get_text_config().num_hidden_layers, capacity)
            self.program, self._checked = None, 0
        self._cache.reset()
        return {"past_key_values": self._cache, "custom_generate": partial(self._generate, streamer=streamer)}

    def _generate(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        streamer: BaseStreamer | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The loop of ``generate`` for one sequence; what prepares and what ends it is transformers'.

        Returns ids ``[1, length]``.
        """
        cache: BufferedCache = kwargs["past_key_values"]
        mask = kwargs.get("attention_mask")
        if mask is not None and not bool(mask.all()):
            raise ValueError("a recorded step decodes one sequence without padding")
        logits_processor = quick(logits_processor)
        with torch.inference_mode():
            logits = self._prompt(input_ids, kwargs)
            while True:
                scores = logits_processor(input_ids, logits.to(copy=True, dtype=torch.float32))
                token = _chosen(scores, bool(generation_config.do_sample))
                input_ids = torch.cat([input_ids, token[:, None]], dim=-1)
                if streamer is not None:
                    streamer.put(token)
                if bool(stopping_criteria(input_ids, None).all()):
                    break
                logits = self._next(input_ids, cache)[:, -1]
        if streamer is not None:
            streamer.end()
        return input_ids

    def _prompt(self, input_ids: Tensor, kwargs: dict[str, Any]) -> Tensor:
        inputs = self.model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **kwargs)
        with quick_forward():
            logits: Tensor = self.model(**inputs, return_dict=True).logits[:, -1]
        return logits

    def _next(self, input_ids: Tensor, cache: BufferedCache) -> Tensor:
        """Logits ``[1, 1, vocabulary]`` after the last of ``input_ids``."""
        if self.program is not None and self._checked == CHECKED:
            self.program.token.copy_(input_ids[:, -1:])
            self.program.position.fill_(cache.length)
            cache.advance()
            return self.program.run()
        inputs = self.model.prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=1,
            past_key_values=cache,
            attention_mask=torch.ones_like(input_ids),
            use_cache=True,
        )
        logits: Tensor = self.model(**inputs, return_dict=True).logits
        if self.note is None:
            self._compare(input_ids[:, -1:], cache, logits[:, -1:])
        return logits

    def _compare(self, token: Tensor, cache: BufferedCache, wanted: Tensor) -> None:
        """Take the step that the model has just taken again, recorded, and give up where the logits differ."""
        try:
            logits, plain = self._both(token, cache)
        except Exception as error:  # the model's code under conditions that it was not written for
            said = (str(error).strip().splitlines() or [""])[0][:200]
            return self._give_up(f"{type(error).__name__}: {said}")
        most = _TOLERANCE[wanted.dtype]
        # Not at most: NaN as well.
        if not _divergence(plain, logits) <= most / 20:
            return self._give_up("the path through the model's code depends on the token")
        divergence = _divergence(wanted, logits)
        if not divergence <= most and not divergence <= 2 * self._of_rounding(token, cache, plain):
            return self._give_up(f"the logits of the recorded step diverge by {divergence:.2g} nats")
        self._checked += 1
        if self._checked == CHECKED:
            self._plain = None
        return None

    def _both(self, token: Tensor, cache: BufferedCache) -> tuple[Tensor, Tensor]:
        """Logits of the recorded step, which is recorded here at first, and of the same step by the model's code."""
        position = torch.tensor([cache.length - 1])
        with _kept(cache) as tensors:
            if self.program is None or self._plain is None:
                self._plain = PlainStep(self.model)
                self.program = Program(self._plain, token.clone(), position.clone(), tensors)
            self.program.token.copy_(token)
            self.program.position.copy_(position)
            return self.program.run(), self._plain(token, position, *tensors)

    def _of_rounding(self, token: Tensor, cache: BufferedCache, plain: Tensor) -> float:
        """How far (nats) the logits move, at most, where the last bits of the token's embedding and of every norm do.

        The recorded step's norms and attention round otherwise than the model's. A model of two bits may make a hundred times
        as much of a rounding as the model that it was.
        """
        assert self._plain is not None
        random = torch.Generator().manual_seed(0)

        def moved(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            signs = 1 - 2 * torch.randint(2, output.shape, generator=random)
            return output * (1 + signs * torch.finfo(output.dtype).eps).to(output.dtype)

        found = []
        places = (self.model.get_input_embeddings(), *rms_norms(self.model))
        hooks = [place.register_forward_hook(moved) for place in places]
        try:
            for _ in range(_MOVES):
                with _kept(cache) as tensors:
                    logits = self._plain(token, torch.tensor([cache.length - 1]), *tensors)
                found.append(_divergence(plain, logits))
        finally:
            for hook in hooks:
                hook.remove()
        return max(found)

    def _give_up(self, reason: str) -> None:
        self.note, self._plain, self.program = reason, None, None
        _LOG.info("decoding by the model's own code, without a recorded step: %s", reason)


@contextmanager
def _kept(cache: BufferedCache) -> Iterator[list[Tensor]]:
    """Keys and values of every layer; those of the last token are afterwards what they were."""
    tensors, last = cache.tensors(), cache.length - 1
    written = [tensor[:, :, last].clone() for tensor in tensors]
    try:
        yield tensors
    finally:
        for tensor, kept in zip(tensors, written, strict=True):
            tensor[:, :, last] = kept


def _one_by_one(model: PreTrainedModel) -> bool:
    """Whether the checkpoint's settings choose one token after the other."""
    config = model.generation_config
    return config is None or config.get_generation_mode() in _MODES


def _chosen(scores: Tensor, sample: bool) -> Tensor:
    """The next token ``[1]``, by the same functions as in transformers' loop."""
    if not sample:
        return torch.argmax(scores, dim=-1)
    return torch.multinomial(torch.nn.functional.softmax(scores, dim=-1), num_samples=1).squeeze(1)


def _reason(model: PreTrainedModel) -> str | None:
    """Why a step cannot be recorded, as far as that is known before trying; ``None`` where it may."""
    if model.device.type != "cpu" or not native.load().loaded:
        return "the kernels of a decoding step run on a CPU, built by a compiler"
    if model.dtype not in _TOLERANCE:
        return f"a decoding step is computed in bf16 and fp32, not in {model.dtype}"
    config = model.config
    if config.is_encoder_decoder:
        return "an encoder and a decoder"
    layers = DynamicCache(config=config).layers
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return "states other than keys and values"
    return None


def _divergence(wanted: Tensor, logits: Tensor) -> float:
    p, q = (torch.log_softmax(each.double().flatten(), 0) for each in (wanted, logits))
    return float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum"))
