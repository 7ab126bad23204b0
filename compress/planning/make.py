"""A plan from headers and configuration alone: targets, structures, layouts, sizes, and what stays as it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from compress_kernels.layouts import TensorSpec
from transformers import PreTrainedModel

from compress.checkpoint.shards import DEFAULT_SHARD_SIZE, Shard, lay_out
from compress.checkpoint.source import Source
from compress.formats import Exporter, Facts, HasNotes, OwnFile
from compress.models.lost_linear import LOST
from compress.models.resize import SHAPES
from compress.models.skeleton import Skeleton
from compress.planning.coverage import coverage
from compress.planning.economy import MemoryBound, promise
from compress.planning.form import FormOptions, choose_form
from compress.planning.group_sizes import group_sizes
from compress.planning.healed import healed_parameters, healing_memory, trained_numbers
from compress.planning.kv_cache import kv_cache_of
from compress.planning.memory import Economy
from compress.planning.methods import transforms_of
from compress.planning.outputs import output_tensors, rewritten_vectors, skipped_weights
from compress.planning.peak import Doing
from compress.planning.plan import Choices, Plan, PlannedWeight
from compress.planning.planned_weights import Planning, take
from compress.recipe.recipe import Recipe
from compress.system.ranks import current_ranks

_LOG = logging.getLogger(__name__)


def make_plan(
    skeleton: Skeleton,
    recipe: Recipe,
    *,
    format: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    ranks: Choices | None = None,
    sparsities: Mapping[str, float] | None = None,
    form_options: FormOptions | None = None,
    memory: MemoryBound | None = None,
    device: str = "cpu",
) -> Plan:
    """Work out what ``recipe`` does to the model of ``skeleton``; no tensor is read.

    Args:
        skeleton: the model, on meta.
        recipe: what to do.
        format: ``auto`` or the name of a form; the recipe's own if ``None``.
        dtype: in which the run computes the blocks, for the estimate of its memory; the model's own if ``None``.
        max_shard_size: bytes of tensors in one output file, at most.
        ranks: weight → its rank, and what goes with it, where the sensitivity pass has found one, ``None`` to leave it whole.
        sparsities: weight → the share of its elements to leave out, where the sensitivity pass has found one.
        form_options: what an earlier plan found out about the form; ``None`` finds it out.
        memory: what the run may hold; ``None`` for no bound.
        device: where blocks run, ``"cpu"`` or ``"cuda"``.

    Raises:
        UserError: targets that match nothing, a group size that does not divide, weights that servers fuse under
            several schemes, a format that cannot hold the result, or a bound of memory that cannot be kept.
    """
    _LOG.info("planning %s", recipe.name)
    format = format or recipe.format
    chosen, ignored = take(skeleton, recipe)
    facts = replace(facts_of(skeleton), kv_cache=kv_cache_of(skeleton, recipe))
    sizes = {common: group_sizes(chosen, recipe, common=common) for common in (False, True)}
    planning = Planning(skeleton, recipe, facts, chosen, format, sizes, ranks or {}, sparsities or {})
    form = choose_form(
        skeleton,
        format,
        facts,
        planning,
        sizes_can_be_shared=sizes[False] != sizes[True],
        settled=form_options,
    )
    exporter, weights, dense = form.exporter, form.weights, planning.dense
    source: Source = skeleton.source
    outputs, copied = output_tensors(weights, facts)
    shards, converted = _files(exporter, outputs, weights, facts, max_shard_size)
    if converted:
        copied = ()
    transforms = transforms_of(recipe)
    rewritten = rewritten_vectors(skeleton, weights) if transforms else {}
    rewritten |= healed_parameters(skeleton, recipe, weights)
    healed = trained_numbers(skeleton, recipe, weights)
    computed, needs = dtype or facts.dtype, {weight.name: weight.needs for weight in weights}
    output_bytes = sum(shard.nbytes for shard in shards)
    healing = healing_memory(skeleton, recipe, weights, healed, output_bytes, computed, device)
    trained = any(weight.methods.block_solvers for weight in weights)
    solvers = {one.name: [type(solver).__name__ for solver in one.methods.solvers] for one in weights}
    others = current_ranks()
    processes = 1 if others is None else others.size
    doing = Doing(skeleton, recipe, needs, computed, solvers, trained, healing, device, processes)
    promised = None if memory is None else promise(memory, doing, passes=not trained)
    held = doing.held(promised.economy if promised else Economy())
    return Plan(
        recipe=recipe,
        format=exporter.name,
        format_reason=form.reason,
        form_options=form.options.to_json(),
        weights=weights,
        skipped=tuple(skipped_weights(skeleton, weights, ignored, dense)),
        passed_through=tuple(name for name in copied if name not in rewritten.values()),
        shards=shards,
        max_shard_size=max_shard_size,
        quantization_config=exporter.quantization_config(weights, facts),
        source_bytes=sum(file.stat().st_size for file in source.files),
        source_numel=sum(info.numel for info in source.headers.values()),
        peak_memory=held.host,
        device_memory=held.device,
        promised=promised,
        exporter=exporter,
        facts=facts,
        ranks=planning.ranks,
        dropped=source.dropped,
        width_pruned=source.width_pruned,
        rotation=source.rotation,
        transforms=transforms,
        rewritten=rewritten,
        healed=healed,
        sparsities=planning.sparsities,
        source_form=source.stored_as,
        converted=converted,
        notes=(
            *(exporter.notes(weights, facts) if isinstance(exporter, HasNotes) else ()),
            *_target_notes(recipe, weights),
        ),
        coverage=coverage(skeleton, {weight.name: weight.numel for weight in weights}, {*ignored, *dense}),
    )


def _target_notes(recipe: Recipe, weights: Sequence[PlannedWeight]) -> tuple[str, ...]:
    """A sentence where weights are solved towards the dense outputs with inputs that they will not get."""
    if recipe.true_sequential or not any(weight.methods.true_input_target for weight in weights):
        return ()
    return (
        "true_input_target without true_sequential solves the weights of a block with inputs that the others of the block do "
        "not give, which may ruin the model: add 'true_sequential: true'",
    )


def _files(
    exporter: Exporter,
    outputs: Sequence[tuple[str, TensorSpec]],
    weights: Sequence[PlannedWeight],
    facts: Facts,
    max_shard_size: int,
) -> tuple[tuple[Shard, ...], dict[str, tuple[str, ...]]]:
    """The output's weight files, and the tensors in them that are made from the source's where none is kept as it is."""
    if isinstance(exporter, OwnFile):
        return exporter.lay_out(weights, facts), exporter.converted(weights, facts)
    return lay_out(outputs, max_shard_size), {}


def facts_of(skeleton: Skeleton) -> Facts:
    """What a form has to know of the model besides the weights that are compressed."""
    model: PreTrainedModel = skeleton.model
    linears = tuple(name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return Facts(
        headers=skeleton.source.headers,
        linear_modules=linears,
        views=tuple(skeleton.views),
        dtype=skeleton.dtype,
        pieces=skeleton.pieces,
        uneven=bool({SHAPES, LOST} & set(skeleton.source.config)),
        config=model.config.get_text_config().to_dict(),
        folder=skeleton.source.path,
    )
