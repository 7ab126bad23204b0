"""Activation schemes of a block's weights: static scales are calibrated and written, and inputs are rounded from then on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compress.activations.scales import input_parameters
from compress.calibrate.simulate import InputRounding
from compress.calibrate.stream import BlockStream
from compress.checkpoint.writer import Writer
from compress.formats.base import tensor_name
from compress.pipeline.job import Job
from compress.planning.plan import PlannedWeight
from compress.score.histogram import Histogram
from compress.score.statistics import Statistics


def calibrate_inputs(
    job: Job, writer: Writer, stream: BlockStream, index: int, planned: Sequence[PlannedWeight]
) -> None:
    """Choose and write the static scales of block ``index``, which is loaded and dense; then round its inputs.

    Raises:
        UserError: the range of an input is not finite.
    """
    rounded = [weight for weight in planned if weight.activations is not None]
    needs = {w.name: frozenset({"histogram"}) for w in rounded if w.activations and w.activations.stored}
    with job.step("observe"):
        histograms = _histograms(rounded, stream.observe(index, needs) if needs else {})
    roundings = {}
    for weight in rounded:
        assert weight.activations is not None
        scheme, observer = weight.activations, weight.methods.observer
        stored = input_parameters(
            weight.name, scheme, observer, histograms.get(weight.name, Histogram()), job.plan.facts.dtype
        )
        writer.put({tensor_name(weight.view, suffix): tensor for suffix, tensor in stored.items()})
        roundings[weight.name] = InputRounding(scheme, stored)
    _round(stream, index, rounded, roundings)


def restore_inputs(writer: Writer, stream: BlockStream, index: int, planned: Sequence[PlannedWeight]) -> None:
    """Round the inputs of block ``index`` with the scales that an earlier run has written."""
    rounded = [weight for weight in planned if weight.activations is not None]
    roundings = {}
    for weight in rounded:
        assert weight.activations is not None
        stored = {s: writer.read(tensor_name(weight.view, s)) for s in weight.activations.stored}
        roundings[weight.name] = InputRounding(weight.activations, stored)
    _round(stream, index, rounded, roundings)


def _round(
    stream: BlockStream,
    index: int,
    rounded: Sequence[PlannedWeight],
    roundings: Mapping[str, InputRounding],
) -> None:
    stream.simulation.set(index, {weight.name: weight.view for weight in rounded}, roundings)


def _histograms(
    rounded: Sequence[PlannedWeight], statistics: Mapping[str, Statistics]
) -> dict[str, Histogram]:
    """Weight → the histogram of its inputs; experts of one parameter share theirs, since servers give them one scale."""
    by_parameter: dict[str, list[Histogram]] = {}
    for weight in rounded:
        seen = statistics.get(weight.name)
        if seen is not None and seen.histogram is not None:
            key = weight.view.parameter if weight.view.kind == "expert" else weight.name
            by_parameter.setdefault(key, []).append(seen.histogram)
    pooled = {key: Histogram.pooled(several) for key, several in by_parameter.items()}
    keys = {w.name: w.view.parameter if w.view.kind == "expert" else w.name for w in rounded}
    return {name: pooled[key] for name, key in keys.items() if key in pooled}
