"""The output's tensors: what is written, copied, changed in place, and what is skipped with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from compress_kernels.layouts import TensorSpec

from compress.formats import Facts
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.planning.plan import PlannedWeight, Skipped


class Output(Protocol):
    """A weight, and the tensors that hold it in the output."""

    @property
    def view(self) -> WeightView:
        """The weight in the model."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Full name → shape and dtype of its tensors on disk."""
        ...


def output_tensors(
    weights: Sequence[Output], facts: Facts
) -> tuple[list[tuple[str, TensorSpec]], tuple[str, ...]]:
    """Every output tensor, in the order of the source's and scales of the key-value cache last, and the names of those that
    are copied."""
    by_source: dict[str, list[Output]] = {}
    for weight in weights:
        for source in weight.view.sources:
            by_source.setdefault(source, []).append(weight)

    def walk() -> Iterator[tuple[str, TensorSpec]]:
        for name, info in facts.headers.items():
            for weight in by_source.get(name, ()):
                yield from weight.tensors.items()
            if name not in by_source:
                yield name, TensorSpec(info.shape, info.dtype)
        if facts.kv_cache is not None:
            yield from facts.kv_cache.specs(facts.dtype).items()

    return list(dict(walk()).items()), tuple(name for name in facts.headers if name not in by_source)


def rewritten_vectors(skeleton: Skeleton, weights: Sequence[PlannedWeight]) -> dict[str, str]:
    """Parameter → disk tensor of the vectors that a transform may change: norms and biases of the blocks it works on."""
    prefixes = tuple({f"{skeleton.blocks[w.view.block]}." for w in weights if w.view.block is not None})
    headers = skeleton.source.headers
    alone = {
        name: pieces[0].disk
        for name, pieces in skeleton.pieces.items()
        if len(pieces) == 1 and pieces[0].whole
    }
    return {
        name: disk
        for name, disk in alone.items()
        if name.startswith(prefixes)
        and len(headers[disk].shape) == 1
        and headers[disk].dtype.is_floating_point
    }


def skipped_weights(
    skeleton: Skeleton,
    weights: tuple[PlannedWeight, ...],
    ignored: Mapping[str, str],
    dense: Mapping[str, str],
) -> Iterator[Skipped]:
    """Every weight of the model that stays dense, with the reason.

    Args:
        skeleton: the model.
        weights: those that are compressed.
        ignored: weight → why the recipe leaves it out.
        dense: weight → why the format or the method cannot take it.
    """
    planned = {weight.name for weight in weights}
    headers = skeleton.source.headers
    for view in skeleton.views:
        if view.name in planned:
            continue
        pattern = ignored.get(view.name)
        reason = f"ignored by the recipe ('{pattern}')" if pattern else "not targeted by the recipe"
        if view.router and pattern is None:
            reason = "router of experts, compressed only where a step targets it by its name"
        reason = f"stays dense: {dense[view.name]}" if view.name in dense else reason
        nbytes = (
            view.shape[0] * view.shape[1] * headers[view.sources[0]].dtype.itemsize if view.sources else 0
        )
        yield Skipped(view.name, reason if view.sources else "not on disk", nbytes)
    for name, reason in skeleton.unsupported.items():
        yield Skipped(name, reason, headers[name].nbytes)
