"""Inputs of the output head: what a model hands it behind its last block, usually the outputs of the final norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, cast

from torch import Tensor, nn

from compress.calibrate.accumulate import Accumulator
from compress.calibrate.capture import CannotStream
from compress.calibrate.loss_head import passed_on
from compress.calibrate.simulate import InputRounding
from compress.score.statistics import Statistics

HeadForward = Callable[[Tensor, Tensor], Tensor]
"""``(ids [b, length], hidden [b, length, hidden]) → inputs [b, length, in]`` of the head."""


class _HeadReached(BaseException):
    """Ends a forward at the head, past any ``except Exception`` in the model's code."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.inputs = inputs


@contextmanager
def head_reached(model: nn.Module) -> Iterator[Callable[[Callable[[], object]], Tensor]]:
    """``run(forward)``: the input of the output head in a forward, which ends there, before the product with the vocabulary."""
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]

    def reached(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        raise _HeadReached((args[0] if args else next(iter(kwargs.values()))).detach())

    def run(forward: Callable[[], object]) -> Tensor:
        try:
            forward()
        except _HeadReached as end:
            return end.inputs
        raise CannotStream(f"{type(model).__name__} does not call its output head as a module")

    handle = head.register_forward_pre_hook(reached, with_kwargs=True)
    try:
        yield run
    finally:
        handle.remove()


@contextmanager
def head_forward(model: nn.Module, blocks: Sequence[str]) -> Iterator[HeadForward]:
    """The model's own code from the outputs of its last block to the input of its head; no block is run.

    Args:
        model: what lies outside of its blocks is loaded, but for the head.
        blocks: the module names of its blocks.
    """
    with passed_on(model, blocks) as run, head_reached(model) as reached:

        def forward(ids: Tensor, hidden: Tensor) -> Tensor:
            def fits(inputs: Any) -> bool:
                return isinstance(inputs, Tensor) and inputs.shape[:-1] == ids.shape

            def to_head() -> Tensor:
                return reached(lambda: model(input_ids=ids, use_cache=False))

            return cast(Tensor, run(to_head, hidden, fits))

        yield forward


def observe_head(
    inputs: Iterator[tuple[Tensor, Tensor | None]],
    needs: frozenset[str],
    *,
    rounding: InputRounding | None = None,
) -> Statistics:
    """Statistics of the inputs of the output head.

    Args:
        inputs: by batch ``[b, length, in]``, and those of the dense model where the cross moment is needed.
        needs: names out of :data:`compress.score.statistics.NEEDS`, without gradients.
        rounding: how a server rounds the inputs.
    """
    accumulator: Accumulator | None = None
    for compressed, dense in inputs:
        if accumulator is None:
            accumulator = Accumulator(needs, compressed.shape[-1], compressed.device)
        accumulator.add(compressed if rounding is None else rounding(compressed), dense)
    if accumulator is None:
        raise ValueError("no inputs of the output head were given")
    return accumulator.finish()
