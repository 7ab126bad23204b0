"""Loss from hidden states: the model's final norm and head on the outputs of its last block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.calibrate.capture import PACKINGS, CannotStream, base_of
from compress.models.skeleton import Skeleton


@torch.no_grad()
def head_loss(
    skeleton: Skeleton,
    tokens: Tensor,
    hidden: Iterable[Tensor],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> float:
    """Mean cross entropy of the next tokens, in nats.

    Args:
        skeleton: the model; its blocks are not run.
        tokens: int64 ``[samples, length]``.
        hidden: the last block's outputs ``[b, length, hidden]`` by batch, in the order of ``tokens``.
        device, dtype: where and in what norm and head are computed.
    """
    total, start = 0.0, 0
    with (
        skeleton.loaded_rest(device=device, dtype=dtype, head=True),
        injection(skeleton.model, skeleton.blocks) as inject,
    ):
        for states in hidden:
            ids = tokens[start : start + len(states)].to(device)
            start += len(states)
            logits = inject(ids, states)[:, :-1].float()
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].reshape(-1), reduction="sum")
            total += float(loss.detach())
    return total / (tokens.shape[0] * (tokens.shape[1] - 1))


class _PassOn(nn.Module):
    """Stands in for a block: returns its input, or the injected hidden states."""

    def __init__(self, block: nn.Module, state: _State, last: bool) -> None:
        super().__init__()
        object.__setattr__(self, "_stand_in_for", block)
        self._state, self._last = state, last

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_stand_in_for"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else next(iter(kwargs.values()))
        given: Any = self._state.hidden if self._last else hidden
        return PACKINGS[self._state.packing](given)


@dataclass
class _State:
    packing: int = 0
    hidden: Tensor | None = None


@contextmanager
def injection(model: nn.Module, blocks: Sequence[str]) -> Iterator[Any]:
    """``(ids, hidden) → logits``: the model's own norm and head on the hidden states of the last block."""
    with passed_on(model, blocks) as run:

        def inject(ids: Tensor, hidden: Tensor) -> Tensor:
            def is_logits(value: Any) -> bool:
                return isinstance(value, Tensor) and value.shape[:2] == ids.shape

            logits = run(lambda: model(input_ids=ids, use_cache=False).logits, hidden, is_logits)
            return cast(Tensor, logits)

        with torch.enable_grad():
            yield inject


Run = Callable[[Callable[[], Any], Tensor, Callable[[Any], bool]], Any]
"""``(forward, hidden, is_answer) → answer``."""


@contextmanager
def passed_on(model: nn.Module, blocks: Sequence[str]) -> Iterator[Run]:
    """``run(forward, hidden, is_answer)``: what ``forward`` of the model returns where its blocks do nothing and the last one
    returns ``hidden``; ``is_answer`` says whether the model has taken it as it was meant.

    Raises:
        CannotStream: in no form in which blocks return hidden states.
    """
    state = _State()
    originals: Mapping[str, nn.Module] = {name: model.get_submodule(name) for name in blocks}

    def run(forward: Callable[[], Any], hidden: Tensor, is_answer: Callable[[Any], bool]) -> Any:
        state.hidden = hidden
        failure: Exception | None = None
        for packing in range(state.packing, len(PACKINGS)):
            state.packing = packing
            try:
                answer = forward()
                if is_answer(answer):
                    return answer
            except Exception as error:  # a model that unpacks the wrong form fails in a way of its own
                failure = error
        raise CannotStream(
            f"{type(base_of(model, blocks[0])).__name__} cannot be run behind its last block, as gradients and the "
            f"inputs of the head need ({failure})"
        ) from failure

    try:
        for place, (name, block) in enumerate(originals.items()):
            _put(model, name, _PassOn(block, state, place == len(originals) - 1))
        yield run
    finally:
        for name, block in originals.items():
            _put(model, name, block)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = module
