"""A plan from headers and configuration alone: targets, structures, layouts, sizes, and what stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from compress_kernels.layouts import Layout, SparseBitmask, SumOf, TensorSpec
from transformers import PreTrainedModel

from compress.checkpoint.shards import DEFAULT_SHARD_SIZE, lay_out
from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.export import Facts, choose
from compress.memory import peak_memory
from compress.methods import Methods, methods_of, reshapes_of, with_choice, with_sparsity
from compress.models.resize import SHAPES
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.plan import Choices, Plan, PlannedWeight, Skipped
from compress.recipe import Recipe
from compress.structures.base import StaysDense
from compress.targets import kinds, select


def make_plan(
    skeleton: Skeleton,
    recipe: Recipe,
    *,
    format: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    ranks: Choices | None = None,
    sparsities: Mapping[str, float] | None = None,
) -> Plan:
    """Work out what ``recipe`` does to the model of ``skeleton``; no tensor is read.

    Args:
        skeleton: the model, on meta.
        recipe: what to do.
        format: ``auto``, ``compressed-tensors``, ``native`` or ``dense``; the recipe's own if ``None``.
        dtype: in which the run computes the blocks, for the estimate of its memory; the model's own if ``None``.
        max_shard_size: bytes of tensors in one output file, at most.
        ranks: weight → its rank, and what goes with it, where a survey has found one, ``None`` to leave it whole.
        sparsities: weight → the share of its elements to leave out, where a survey has found one.

    Raises:
        UserError: targets that match nothing, a group size that does not divide, weights that servers fuse under
            several schemes, or a format that cannot hold the result.
    """
    format = format or recipe.format
    chosen, ignored = _take(skeleton, recipe)
    facts = _facts(skeleton)
    dense: dict[str, str] = {}
    bare = list(_plan_weights(chosen, recipe, facts, ranks or {}, sparsities or {}, dense))
    if dense and not bare:
        raise UserError(f"no weight would become smaller: {next(iter(dense))} {next(iter(dense.values()))}")
    if format != "dense" and not recipe.allow_split_groups:
        # Where each weight's share was chosen by itself, what lies beside its factors may differ too.
        free = {weight.name: weight.layout for weight in bare if weight.name not in (ranks or {})}
        _check_groups(skeleton, free, {**dense, **dict.fromkeys(ranks or {}, "")})
    exporter, reason = choose(format if bare or facts.uneven else "dense", bare, facts)
    weights = tuple(
        replace(w, stored=exporter.stored(w, facts), tensors=exporter.specs(w, facts)) for w in bare
    )
    source: Source = skeleton.source
    outputs, copied = _outputs(weights, facts)
    reshapes = reshapes_of(recipe)
    rewritten = _rewritten(skeleton, weights) if reshapes else {}
    passed = tuple(name for name in copied if name not in rewritten.values())
    return Plan(
        recipe=recipe,
        format=exporter.name,
        format_reason=reason,
        weights=weights,
        skipped=tuple(_skipped(skeleton, weights, ignored, dense)),
        passed_through=passed,
        shards=lay_out(outputs, max_shard_size),
        max_shard_size=max_shard_size,
        quantization_config=exporter.quantization_config(weights, facts),
        source_bytes=sum(file.stat().st_size for file in source.files),
        source_numel=sum(info.numel for info in source.headers.values()),
        peak_memory=peak_memory(skeleton, recipe, {w.name: w.needs for w in weights}, dtype or facts.dtype),
        exporter=exporter,
        facts=facts,
        ranks=ranks or {},
        dropped=skeleton.source.dropped,
        narrowed=skeleton.source.narrowed,
        reshapes=reshapes,
        rewritten=rewritten,
        sparsities=sparsities or {},
    )


def _take(skeleton: Skeleton, recipe: Recipe) -> tuple[list[tuple[WeightView, int]], dict[str, str]]:
    """Each targeted view with the last step that takes it, in the model's order; name → pattern of the ignored."""
    views = [view for view in skeleton.views if view.sources]
    step_of: dict[str, int] = {}
    ignored: dict[str, str] = {}
    for index, step in enumerate(recipe.steps):
        taken, passed_over = select(step, views, f"steps.{index}")
        step_of |= {view.name: index for view in taken}
        ignored |= passed_over
    if not step_of and recipe.steps:
        wanted = ", ".join(dict.fromkeys(target for step in recipe.steps for target in step.targets))
        raise UserError(
            f"the recipe's targets ({wanted}) leave no weight of this model to compress: {kinds(views)}"
        )
    return [(view, step_of[view.name]) for view in views if view.name in step_of], ignored


def _plan_weights(
    chosen: Sequence[tuple[WeightView, int]],
    recipe: Recipe,
    facts: Facts,
    ranks: Choices,
    sparsities: Mapping[str, float],
    dense: dict[str, str],
) -> Iterator[PlannedWeight]:
    """The weights that become smaller; name → reason of those that would not goes to ``dense``."""
    made: dict[tuple[int, torch.dtype], Methods] = {}
    for view, step in chosen:
        key = (step, facts.headers[view.sources[0]].dtype)
        if key not in made:
            made[key] = methods_of(recipe.steps[step], key[1])
        methods, input_from = made[key], None
        if view.block is None and methods.needs:
            raise UserError(
                f"steps.{step}: {view.name} lies outside the decoder blocks, where no statistics are gathered: give it a step "
                "of its own with a solver that needs no data, such as nearest"
            )
        settings = recipe.steps[step].lowrank
        if view.name in ranks and settings is not None and settings.allocate != "uniform":
            choice = ranks[view.name]
            if choice is None:
                dense[view.name] = "whole it serves the budget of ranks better"
                continue
            methods = with_choice(methods, choice)
            input_from = choice.shared if choice.shared != view.name else None
        if view.name in sparsities:
            methods = replace(methods, structure=with_sparsity(methods.structure, sparsities[view.name]))
        try:
            layout = methods.structure.layout(view.shape)
        except StaysDense as reason:
            dense[view.name] = str(reason)
            continue
        except ValueError as error:
            raise UserError(_unfit(view, methods, error)) from error
        yield PlannedWeight(view, step, methods, layout, layout, {}, input_from)


def _unfit(view: WeightView, methods: Methods, error: ValueError) -> str:
    group = getattr(methods.structure, "group", None)
    columns = view.shape[1]
    if not isinstance(group, int) or columns % group == 0:
        return f"{view.name} {list(view.shape)}: {error}"
    fit = [size for size in (16, 32, 64, 128, 256, 512, 1024) if columns % size == 0]
    fit = fit or [size for size in range(8, columns + 1) if columns % size == 0][:6]
    return (
        f"group size {group} does not divide the {columns} inputs of {view.name}: "
        f"{', '.join(map(str, fit))} or 'channel' would do, or add the weight to 'ignore'"
    )


def _check_groups(skeleton: Skeleton, layouts: Mapping[str, Layout], dense: Mapping[str, str]) -> None:
    """Weights that servers run as one have to share one scheme; those in ``dense`` gain nothing by it."""
    for group in skeleton.fused_groups(skeleton.views):
        schemes = {view.name: _scheme_of(layouts.get(view.name)) for view in group if view.name not in dense}
        if len(set(schemes.values())) > 1:
            first, other = _two_unlike(schemes)
            raise UserError(
                f"{first} ({_scheme(schemes[first])}) and {other} ({_scheme(schemes[other])}) are run as one weight by "
                "servers and need one scheme: give both the same, or set allow_split_groups: true"
            )


def _two_unlike(schemes: Mapping[str, Layout | None]) -> tuple[str, str]:
    first = next(iter(schemes))
    return first, next(name for name, layout in schemes.items() if layout != schemes[first])


def _scheme_of(layout: Layout | None) -> Layout | None:
    """The layout without what may differ between weights that are run as one: a rank, how many numbers a mask keeps."""
    if isinstance(layout, SumOf):
        return SumOf(tuple(part for part in map(_scheme_of, layout.parts) if part is not None))
    scheme: Layout | None = getattr(layout, "scheme", layout)
    return replace(scheme, nnz=0) if isinstance(scheme, SparseBitmask) else scheme


def _scheme(layout: Layout | None) -> str:
    if layout is None:
        return "left as it is"
    return ", ".join(f"{key} {value}" for key, value in layout.to_json().items() if key != "name")


def _facts(skeleton: Skeleton) -> Facts:
    model: PreTrainedModel = skeleton.model
    linears = tuple(name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return Facts(
        headers=skeleton.source.headers,
        linear_modules=linears,
        views=tuple(skeleton.views),
        dtype=skeleton.dtype,
        pieces=skeleton.pieces,
        uneven=SHAPES in skeleton.source.config,
    )


def _outputs(
    weights: tuple[PlannedWeight, ...], facts: Facts
) -> tuple[list[tuple[str, TensorSpec]], tuple[str, ...]]:
    """Every output tensor, in the order of the source's, and the names of those that are copied."""
    by_source: dict[str, list[PlannedWeight]] = {}
    for weight in weights:
        for source in weight.view.sources:
            by_source.setdefault(source, []).append(weight)

    def walk() -> Iterator[tuple[str, TensorSpec]]:
        for name, info in facts.headers.items():
            for weight in by_source.get(name, ()):
                yield from weight.tensors.items()
            if name not in by_source:
                yield name, TensorSpec(info.shape, info.dtype)

    return list(dict(walk()).items()), tuple(name for name in facts.headers if name not in by_source)


def _rewritten(skeleton: Skeleton, weights: Sequence[PlannedWeight]) -> dict[str, str]:
    """Parameter → disk tensor of the vectors that a reshape may change: norms and biases of the blocks it works on."""
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


def _skipped(
    skeleton: Skeleton,
    weights: tuple[PlannedWeight, ...],
    ignored: Mapping[str, str],
    dense: Mapping[str, str],
) -> Iterator[Skipped]:
    planned = {weight.name for weight in weights}
    headers = skeleton.source.headers
    for view in skeleton.views:
        if view.name in planned:
            continue
        pattern = ignored.get(view.name)
        reason = f"ignored by the recipe ('{pattern}')" if pattern else "not targeted by the recipe"
        reason = f"stays dense: {dense[view.name]}" if view.name in dense else reason
        nbytes = (
            view.shape[0] * view.shape[1] * headers[view.sources[0]].dtype.itemsize if view.sources else 0
        )
        yield Skipped(view.name, reason if view.sources else "not on disk", nbytes)
    for name, reason in skeleton.unsupported.items():
        yield Skipped(name, reason, headers[name].nbytes)
