"""Activation schemes of a block's weights: static scales are calibrated and written, and inputs are rounded from then on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compress.activations.scales import cache_scale, input_parameters
from compress.calibrate.kv_cache import CacheRounding, observe_cache
from compress.calibrate.simulate import InputRounding
from compress.calibrate.stream import BlockStream
from compress.checkpoint.writer import Writer
from compress.errors import UserError
from compress.formats.base import KEY_SCALE, VALUE_SCALE, put_inputs, read_inputs
from compress.pipeline.job import Job
from compress.planning.methods import observer_of
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
    if not rounded:
        return
    needs = {w.name: frozenset({"histogram"}) for w in rounded if w.activations and w.activations.stored}
    with job.step("observe"):
        histograms = _histograms(rounded, stream.observe(index, needs) if needs else {})
    roundings = {}
    for weight in rounded:
        assert weight.activations is not None
        scheme, observer = weight.activations, weight.methods.observer
        calibrated = input_parameters(
            weight.name, scheme, observer, histograms.get(weight.name, Histogram()), job.plan.facts.dtype
        )
        put_inputs(job.plan.exporter, weight, calibrated, writer)
        roundings[weight.name] = InputRounding(scheme, read_inputs(job.plan.exporter, weight, writer.read))
    _round(stream, index, rounded, roundings)


def calibrate_cache(job: Job, writer: Writer, stream: BlockStream, index: int) -> None:
    """Choose and write the scales of the keys and values of block ``index``, whose inputs are rounded already; then store
    these rounded.

    Raises:
        UserError: a range is not finite, or a layer stores nothing.
    """
    attention, cache = job.plan.attention(index), job.plan.facts.kv_cache
    if not attention or cache is None or job.plan.recipe.kv_cache is None:
        return
    observer = observer_of(job.plan.recipe.kv_cache.observer)
    dtype = job.plan.facts.dtype
    with job.step("observe"):
        seen = observe_cache(job.skeleton, stream, index, [one.module for one in attention])
    for one in attention:
        histograms = seen[one.module]
        if len(histograms.keys) != one.heads or len(histograms.values) != one.heads:
            raise UserError(
                f"kv_cache: {one.module} stores {len(histograms.keys) or 'no'} heads of keys where config.json says "
                f"{one.heads}: leave 'kv_cache' out of recipes for this model"
            )
        key, value = (
            cache_scale(f"{one.disk} ({what})", cache.scheme, observer, parts, dtype)
            for what, parts in (("keys", histograms.keys), ("values", histograms.values))
        )
        writer.put({f"{one.disk}.{KEY_SCALE}": key, f"{one.disk}.{VALUE_SCALE}": value})
    restore_cache(job, writer, stream, index)


def restore_cache(job: Job, writer: Writer, stream: BlockStream, index: int) -> None:
    """Store keys and values of block ``index`` by the scales that were written."""
    cache = job.plan.facts.kv_cache
    if cache is not None:
        stores = {
            one.module: CacheRounding(
                cache.scheme, writer.read(f"{one.disk}.{KEY_SCALE}"), writer.read(f"{one.disk}.{VALUE_SCALE}")
            )
            for one in job.plan.attention(index)
        }
        stream.simulation.set_caches(index, stores)


def restore_inputs(
    job: Job, writer: Writer, stream: BlockStream, index: int, planned: Sequence[PlannedWeight]
) -> None:
    """Round the inputs of block ``index`` with the scales that an earlier run has written."""
    rounded = [weight for weight in planned if weight.activations is not None]
    roundings = {}
    for weight in rounded:
        assert weight.activations is not None
        stored = read_inputs(job.plan.exporter, weight, writer.read)
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
