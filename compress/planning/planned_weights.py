"""The weights that become smaller, each with its methods and its layout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from compress.errors import UserError
from compress.formats import Facts, RestrictsGrids
from compress.formats.gguf.mixes import MIXES, mixed_types
from compress.models.architecture import require_next_token_loss
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.planning.activations import check_activations
from compress.planning.fused_groups import check_fused_groups
from compress.planning.group_sizes import Group, with_group_size
from compress.planning.methods import Methods, methods_of, with_choice
from compress.planning.outside import check_outside, with_solver_of_head
from compress.planning.plan import Choices, PlannedWeight
from compress.planning.rotated_inputs import with_rotated_inputs
from compress.planning.structures import with_sparsity, with_type
from compress.planning.targets import kinds, select
from compress.recipe.recipe import Recipe
from compress.recipe.registry import find
from compress.score.statistics import GRADIENT_NEEDS
from compress.structures.base import DependsOnShape, StaysDense, Structure


def _restriction(format: str) -> Callable[[Structure], Structure]:
    """What is done to a step's structure where the form that is asked for stores fewer numbers than it has."""
    exporter = None if format == "auto" else find("exporter", format)()
    return exporter.restricted if isinstance(exporter, RestrictsGrids) else lambda structure: structure


def take(skeleton: Skeleton, recipe: Recipe) -> tuple[list[tuple[WeightView, int]], dict[str, str]]:
    """Each targeted view with the last step that takes it, in the model's order; name → pattern of the ignored."""
    views = [view for view in skeleton.views if view.sources]
    step_of: dict[str, int] = {}
    ignored: dict[str, str] = {}
    for index, step in enumerate(recipe.all_steps):
        taken, passed_over = select(step, views, recipe.place_of(index))
        step_of |= {view.name: index for view in taken}
        ignored |= passed_over
    if not step_of and recipe.all_steps:
        wanted = ", ".join(dict.fromkeys(target for step in recipe.all_steps for target in step.targets))
        raise UserError(
            f"the recipe's targets ({wanted}) leave no weight of this model to compress: {kinds(views)}"
        )
    return [(view, step_of[view.name]) for view in views if view.name in step_of], ignored


@dataclass(frozen=True)
class _MethodsByStep:
    """The methods of each step, built once for all weights of one dtype and group size."""

    recipe: Recipe
    facts: Facts
    sizes: Mapping[str, Group]
    restrict: Callable[[Structure], Structure]
    _made: dict[Any, Methods] = field(default_factory=dict)

    def __call__(self, view: WeightView, step: int, looks_at_data: bool) -> Methods:
        """The methods of step number ``step`` for ``view``; ``looks_at_data`` says whether the steps for the blocks do.

        Raises:
            StaysDense: no group size fits the weight.
        """
        dtype = self.facts.headers[view.sources[0]].dtype
        key = (step, dtype, self.sizes.get(view.name), view.in_head)
        if key not in self._made:
            found = with_solver_of_head(self.recipe, step, view, looks_at_data)
            built = methods_of(with_group_size(found, view.name, self.sizes), dtype)
            self._made[key] = replace(built, structure=self.restrict(built.structure))
        return self._made[key]

    def look_at_data(self, chosen: Sequence[tuple[WeightView, int]]) -> bool:
        """Whether a step of the recipe's ``steps`` reads calibration data for the weights that it takes."""
        for view, step in chosen:
            if step >= len(self.recipe.steps):
                continue
            with contextlib.suppress(StaysDense):
                methods = self(view, step, False)
                if methods.needs or methods.block_solvers:
                    return True
        return False


@dataclass(frozen=True)
class Planning:
    """Plans the weights that become smaller; called once for each way of choosing group sizes.

    Attributes:
        skeleton, recipe, facts: the model and what to do with it.
        chosen: each targeted view with the step that takes it.
        format: the form that is asked for.
        sizes: whether weights share a group size → weight → its size.
        ranks, sparsities: as for :func:`make_plan`.
        dense: is filled: name → why a weight would not become smaller.
    """

    skeleton: Skeleton
    recipe: Recipe
    facts: Facts
    chosen: Sequence[tuple[WeightView, int]]
    format: str
    sizes: Mapping[bool, Mapping[str, Group]]
    ranks: Choices
    sparsities: Mapping[str, float]
    dense: dict[str, str] = field(default_factory=dict)

    def __call__(self, common: bool) -> list[PlannedWeight]:
        """The weights; ``common`` says whether those whose group size is ``auto`` share one."""
        found = list(self._weights(self.sizes[common]))
        if self.dense and not found:
            name, reason = next(iter(self.dense.items()))
            raise UserError(f"no weight would become smaller: {name} {reason}")
        for weight in found:
            if weight.needs & GRADIENT_NEEDS:
                place = self.recipe.place_of(weight.step)
                require_next_token_loss(self.skeleton.model, f"{place} needs gradients of")
        # llama.cpp and mlx_lm run no weights as one.
        if self.format not in ("dense", "gguf", "mlx") and not self.recipe.allow_split_groups:
            # Where each weight's share was chosen by itself, what lies beside its factors may differ too.
            free = {weight.name: weight.layout for weight in found if weight.name not in self.ranks}
            inputs = {weight.name: weight.activations for weight in found}
            check_fused_groups(self.skeleton, free, {**self.dense, **dict.fromkeys(self.ranks, "")}, inputs)
        return found

    def _weights(self, sizes: Mapping[str, Group]) -> Iterator[PlannedWeight]:
        types: dict[int, dict[str, str]] = {}
        methods_for = _MethodsByStep(self.recipe, self.facts, sizes, _restriction(self.format))
        looks_at_data = methods_for.look_at_data(self.chosen)
        for view, step in self.chosen:
            try:
                weight = self._weight(view, step, methods_for(view, step, looks_at_data), types)
            except StaysDense as reason:
                self.dense[view.name] = str(reason)
            else:
                yield weight

    def _weight(
        self, view: WeightView, step: int, methods: Methods, types: dict[int, dict[str, str]]
    ) -> PlannedWeight:
        """One weight with its methods and its layout; ``types`` keeps the mixes that were found.

        Raises:
            StaysDense: it would not become smaller.
        """
        place = self.recipe.place_of(step)
        if view.block is None:
            check_outside(self.skeleton, view, methods, place)
        if methods.activations is not None:
            methods = with_rotated_inputs(self.skeleton, self.recipe, view, methods, place)
            assert methods.activations is not None
            check_activations(view, methods.activations, place)
        methods, input_from = self._as_allocated(view, step, methods)
        if view.name in (mixed := _mixed(self.recipe, step, self.facts, types)):
            methods = replace(methods, structure=with_type(methods.structure, mixed[view.name]))
        if isinstance(methods.structure, DependsOnShape):
            methods = replace(methods, structure=methods.structure.for_shape(view.shape))
        try:
            layout = methods.structure.layout(view.shape)
        except StaysDense:
            raise
        except ValueError as error:
            raise UserError(_unfit(view, methods, error)) from error
        return PlannedWeight(view, step, methods, layout, layout, {}, input_from)

    def _as_allocated(self, view: WeightView, step: int, methods: Methods) -> tuple[Methods, str | None]:
        """With the rank and the sparsity that were chosen for the weight, and whose input factors it shares."""
        input_from = None
        settings = self.recipe.all_steps[step].lowrank
        if view.name in self.ranks and settings is not None and settings.allocate != "uniform":
            choice = self.ranks[view.name]
            if choice is None:
                raise StaysDense("whole it serves the budget of ranks better")
            methods = with_choice(methods, choice)
            input_from = choice.shared if choice.shared != view.name else None
        if view.name in self.sparsities:
            structure = with_sparsity(methods.structure, self.sparsities[view.name])
            methods = replace(methods, structure=structure)
        return methods, input_from


def _mixed(recipe: Recipe, step: int, facts: Facts, known: dict[int, dict[str, str]]) -> dict[str, str]:
    """Weight → its type, where the step asks for a mix; ``known`` keeps what was found."""
    wanted = recipe.all_steps[step].quantize
    if wanted is None or wanted.mix is None:
        return {}
    if step not in known:
        if (wanted.type, wanted.mix) not in MIXES:
            sizes = ", ".join(f"{kind} {mix}" for kind, mix in MIXES)
            raise UserError(
                f"{recipe.place_of(step)}: llama.cpp has no mix '{wanted.mix}' of {wanted.type}: known are {sizes}"
            )
        known[step] = mixed_types(facts, wanted.type, wanted.mix)
    return known[step]


def _unfit(view: WeightView, methods: Methods, error: ValueError) -> str:
    group = getattr(methods.structure, "group_size", None)
    columns = view.shape[1]
    if isinstance(methods.structure, DependsOnShape):
        return f"{view.name} {list(view.shape)}: {error}; 'quantize.fallback: true' takes that type"
    if not isinstance(group, int) or columns % group == 0:
        return f"{view.name} {list(view.shape)}: {error}"
    fit = next((size for size in (128, 64, 32) if columns % size == 0), "channel")
    return (
        f"group size {group} does not divide the {columns} inputs of {view.name}: give --set quantize.group_size={fit}, "
        "or 'auto' for a size that fits each weight, or add the weight to 'ignore'"
    )
