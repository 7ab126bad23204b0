"""``generate`` of transformers with a traced step in the place of the model, where that computes the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from compress_kernels import native
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from .cache import BufferedCache, empty_position
from .traced import PlainStep, Step, trace

_LOG = logging.getLogger(__name__)

CHECKED = 4
"""Steps whose logits are compared with the model's before the traced step takes over."""

WORTH = 16
"""New tokens from which on tracing is worth its second or two."""

_TOLERANCE = {torch.bfloat16: 0.02, torch.float32: 1e-5}
"""Largest divergence (KL, nats) of the kernels' step from the model's, in each dtype."""

_BLOCK = 256
_KNOWN = ("input_ids", "past_key_values", "position_ids", "attention_mask", "cache_position")
_IGNORED = (
    "use_cache",
    "return_dict",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "num_logits_to_keep",
)


class Decoder:
    """Decodes with a model, by a traced step where it can.

    The step is traced at the first token after a prompt and compared with the model's logits for the next :data:`CHECKED`
    tokens. A model that it does not fit (experts that are chosen by the token, states other than keys and values, attention
    with sinks, more than one sequence) decodes as transformers does it; ``note`` says why.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.note = _reason(model)
        self._plain: PlainStep | None = None
        self._step: Step | None = None
        self._checked = 0
        self._position = empty_position(model.device)

    @contextmanager
    def generating(self, batch: int, prompt: int, new: int, beams: int = 1) -> Iterator[dict[str, Any]]:
        """Within it ``model.generate`` decodes by the traced step; yields arguments for ``generate``.

        Args:
            batch: sequences. prompt: tokens of each. new: tokens to come, at most. beams: of a beam search.
        """
        if self.note is not None or batch != 1 or beams != 1 or new < WORTH:
            yield {}
            return
        capacity = -(-(prompt + new) // _BLOCK) * _BLOCK
        cache = BufferedCache(self.model.config.get_text_config().num_hidden_layers, capacity)
        plain = self.model.forward
        self.model.__dict__["forward"] = self._forward(plain)
        try:
            yield {"past_key_values": cache}
        finally:
            del self.model.__dict__["forward"]

    def _forward(self, plain: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            token = None if args else _single_token(kwargs)
            if token is None or self.note is not None:
                return plain(*args, **kwargs)
            cache: BufferedCache = kwargs["past_key_values"]
            if self._checked < CHECKED:
                output = plain(**kwargs)
                self._compare(token, cache, output.logits[:, -1:])
                return output
            assert self._step is not None
            self._position.fill_(cache.length)
            logits = self._step(token, self._position, *cache.tensors())
            cache.advance()
            return CausalLMOutputWithPast(logits=logits, past_key_values=cache)  # type: ignore[arg-type]

        return forward

    def _compare(self, token: Tensor, cache: BufferedCache, wanted: Tensor) -> None:
        """Take the step that the model has just taken again, traced, and give up where the logits differ."""
        self._position.fill_(cache.length - 1)
        try:
            logits, plain = self._both(token, cache)
        except Exception as error:  # the model's code under conditions that it was not written for
            said = (str(error).strip().splitlines() or [""])[0][:200]
            return self._give_up(f"{type(error).__name__}: {said}")
        most = _TOLERANCE[wanted.dtype]
        # Not at most: NaN as well.
        if not _divergence(plain, logits) <= most / 20:
            return self._give_up("the path through the model's code depends on the token")
        if not (divergence := _divergence(wanted, logits)) <= most:
            return self._give_up(f"the logits of the traced step diverge by {divergence:.2g} nats")
        self._checked += 1
        if self._checked == CHECKED:
            self._plain = None
        return None

    def _both(self, token: Tensor, cache: BufferedCache) -> tuple[Tensor, Tensor]:
        """Logits of the traced step, which is traced here at first, and of the same step by the model's code."""
        tensors = cache.tensors()
        written = [tensor[:, :, cache.length - 1].clone() for tensor in tensors]
        try:
            if self._step is None or self._plain is None:
                with torch.inference_mode(False), torch.no_grad():
                    inputs = [tensor.clone() for tensor in (token, self._position, *tensors)]
                    self._plain = PlainStep(self.model)
                    self._step = trace(self._plain, inputs[0], inputs[1], inputs[2:])
            return self._step(token, self._position, *tensors), self._plain(token, self._position, *tensors)
        finally:
            for tensor, kept in zip(tensors, written, strict=True):
                tensor[:, :, cache.length - 1] = kept

    def _give_up(self, reason: str) -> None:
        self.note, self._plain, self._step = reason, None, None
        _LOG.info("decoding as transformers does it, without a traced step: %s", reason)


def _reason(model: PreTrainedModel) -> str | None:
    """Why a model cannot be traced, as far as that is known before trying; ``None`` where it may."""
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


def _single_token(kwargs: dict[str, Any]) -> Tensor | None:
    """The token of a call that the traced step can answer, or ``None``."""
    token, cache = kwargs.get("input_ids"), kwargs.get("past_key_values")
    if not isinstance(token, Tensor) or token.shape != (1, 1) or not isinstance(cache, BufferedCache):
        return None
    others = [name for name, held in kwargs.items() if name not in _KNOWN + _IGNORED and held is not None]
    mask = kwargs.get("attention_mask")
    plain = mask is None or (isinstance(mask, Tensor) and mask.dim() == 2 and bool(mask.all()))
    return token if plain and not others and cache.length > 0 else None
