"""Methods of a step: the structure, score and solvers that it names, built and checked against each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from compress_kernels.activations import ActivationScheme

from compress.activations.observers import MinMax, Observer
from compress.errors import UserError
from compress.planning.options import checked_options
from compress.planning.structures import structure_of
from compress.recipe.recipe import Recipe
from compress.recipe.registry import RENAMED, SOLVERS, did_you_mean, find
from compress.recipe.section import Method
from compress.recipe.sections import Step
from compress.score.base import Score
from compress.solvers.base import BlockSolver, WeightSolver
from compress.solvers.nearest import Nearest
from compress.solvers.residual import ResidualSolver
from compress.structures.base import (
    HasClipRanges,
    HasCodes,
    HasColumns,
    HasElements,
    HasGroups,
    HasPatterns,
    HasScales,
    HasZeroPoints,
    Selects,
    Structure,
)
from compress.structures.choices import Choice
from compress.structures.low_rank.factors import Factors
from compress.structures.low_rank.sums import FactorsAnd, FactorsAndColumns
from compress.transforms.base import Transform
from compress.transforms.rotation import Rotation

CAPABILITIES: dict[type, str] = {
    HasColumns: "columns that can be rounded one at a time ('quantize' or 'prune')",
    HasElements: "elements that can be rounded in any order ('quantize')",
    HasCodes: "codes for each element ('quantize' without 'prune')",
    HasScales: "scales ('quantize')",
    HasClipRanges: "ranges that can be clipped ('quantize' without 'prune')",
    HasGroups: "groups of columns ('quantize' without 'prune')",
    HasZeroPoints: "zero points ('quantize' with 'symmetric: false')",
    Selects: "a sparsity pattern ('prune')",
    HasPatterns: "a pattern n:m of few choices ('prune.pattern' without 'quantize')",
    Factors: "two factors and nothing else ('lowrank' alone)",
    FactorsAndColumns: "factors and kept columns ('lowrank.columns')",
    FactorsAnd: "factors and a residual ('lowrank' with 'quantize' or 'prune')",
}
"""What a solver may require of a structure, in the recipe's words."""


@dataclass(frozen=True)
class Methods:
    """The structure, the score and the solvers, in order, of one step.

    Attributes:
        structure: the set of allowed weights.
        score: what an error costs.
        solvers: of single weights.
        block_solvers: of all the step's weights in a block together; they start from what ``solvers`` have left.
        true_input_target: whether the solvers approximate the true-input target in the place of the weight.
        activations: how the inputs of the step's layers are rounded.
        observer: chooses the range of static activations.
    """

    structure: Structure
    score: Score
    solvers: tuple[WeightSolver, ...]
    block_solvers: tuple[BlockSolver, ...] = ()
    true_input_target: bool = False
    activations: ActivationScheme | None = None
    observer: Observer = field(default_factory=MinMax)

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that have to be gathered for these methods."""
        solvers: tuple[WeightSolver | BlockSolver, ...] = (*self.solvers, *self.block_solvers)
        cross = frozenset({"cross"}) if self.true_input_target else frozenset()
        return self.score.needs.union(cross, *(solver.needs for solver in solvers))


def methods_of(step: Step, dtype: torch.dtype) -> Methods:
    """Build the methods of ``step``; ``dtype`` is the model's, in which scales are stored.

    Raises:
        UserError: an unknown method or option, a value of a wrong type, or a solver that cannot serve the structure.
    """
    structure = structure_of(step, dtype)
    built = tuple(_for_residual(build("solver", method), structure) for method in step.solver)
    score_name = step.score or Method(name=built[-1].score)
    score = build("score", score_name)
    for method, solver in zip(step.solver, built, strict=True):
        if lacking := unmet(solver, structure):
            raise UserError(
                f"solver '{method.name}' cannot serve this step: it needs {' and '.join(lacking)}"
            )
    solvers = tuple(solver for solver in built if not _takes_blocks(solver))
    if built[: len(solvers)] != solvers:
        names = ", ".join(method.name for method in step.solver)
        raise UserError(f"solver [{names}]: a solver of whole blocks comes after those of single weights")
    if step.lowrank is not None and step.lowrank.allocate != "uniform" and not hasattr(built[-1], "options"):
        able = [name for name in SOLVERS if hasattr(find("solver", name), "options")]
        raise UserError(
            f"'lowrank.allocate' does not go with solver '{step.solver[-1].name}', only with {', '.join(able)}"
        )
    if getattr(score, "elementwise", False):
        _check_elementwise(step, score_name.name, built)
    _check_true_input(step, built)
    return Methods(
        structure,
        score,
        solvers or (Nearest(),),
        built[len(solvers) :],
        step.true_input_target,
        None if step.activations is None else step.activations.scheme(),
        MinMax() if step.activations is None else observer_of(step.activations.observer),
    )


def _check_elementwise(step: Step, score: str, solvers: Sequence[Any]) -> None:
    """Refuse what needs to know how errors of different inputs interact, with a score that counts each element alone."""
    for method, solver in zip(step.solver, solvers, strict=True):
        inner = solver.solver if isinstance(solver, ResidualSolver) else solver
        if getattr(inner, "two_sided", False):
            raise UserError(
                f"solver '{method.name}' does not go with score '{score}', which counts every element alone"
            )
    if step.true_input_target:
        raise UserError(
            f"'true_input_target' does not go with score '{score}', which counts every element alone"
        )


def _check_true_input(step: Step, solvers: Sequence[Any]) -> None:
    """Refuse a true-input target that no solver follows, and a correction without a target."""
    names = ", ".join(method.name for method in step.solver)
    if step.true_input_target and not any(getattr(solver, "true_input", True) for solver in solvers):
        raise UserError(
            f"'true_input_target' does not go with solver [{names}], which looks at the weight alone"
        )
    for method in step.solver:
        if "input_correction" in method.options and not step.true_input_target:
            raise UserError(
                f"solver '{method.name}': 'input_correction' needs 'true_input_target: true' in the step"
            )


def unmet(solver: WeightSolver | BlockSolver, structure: Structure) -> list[str]:
    """What ``solver`` requires and ``structure`` does not have, in the recipe's words; empty if the solver can serve."""
    pairs = [(solver.requires, structure)]
    if (required := getattr(solver, "requires_residual", None)) is not None:
        pairs.append((required, getattr(structure, "residual", structure)))
    missing = [
        part
        for required, provider in pairs
        if not isinstance(provider, required)
        for part in required.__mro__
        if part in CAPABILITIES and not isinstance(provider, part)
    ]
    return [CAPABILITIES[part] for part in dict.fromkeys(missing) if not _implied(part, missing)]


def _implied(part: type, missing: Sequence[type]) -> bool:
    """Whether a Protocol that includes ``part`` is missing too, and says so already."""
    return any(other is not part and part in other.__mro__ for other in missing)


def _for_residual(solver: Any, structure: Structure) -> Any:
    """``solver``; in a sum with factors, a solver that does not know factors works on the residual."""
    if not isinstance(structure, FactorsAnd) or _takes_blocks(solver):
        return solver
    knows_factors = solver.requires is FactorsAnd or solver.requires is Structure
    return solver if knows_factors or unmet(solver, structure.residual) else ResidualSolver(solver)


def _takes_blocks(solver: WeightSolver | BlockSolver) -> bool:
    return getattr(solver, "scope", "weight") == "block"


def transforms_of(recipe: Recipe) -> tuple[Transform, ...]:
    """The transforms of blocks that a recipe names, in order; a rotation is none, it is made before."""
    built = (build("transform", method) for method in recipe.transforms)
    return tuple(transform for transform in built if not isinstance(transform, Rotation))


def rotation_of(recipe: Recipe) -> Rotation | None:
    """The rotation that a recipe names; ``None`` where it names none.

    Raises:
        UserError: it comes behind other transforms, or there are several.
    """
    built = [build("transform", method) for method in recipe.transforms]
    places = [place for place, transform in enumerate(built) if isinstance(transform, Rotation)]
    if not places:
        return None
    if places != [0]:
        raise UserError(
            "transforms: 'rotation' is named once and first: it changes the whole model before blocks are scaled"
        )
    rotation: Rotation = built[0]
    return rotation


def observer_of(method: Method) -> Observer:
    """The observer that a recipe names, for the range of static scales."""
    observer: Observer = build("observer", method)
    return observer


def with_choice(methods: Methods, choice: Choice) -> Methods:
    """The methods of a weight after an allocation has chosen its rank and what goes with it.

    Where the chosen structure is no longer one that the step's solvers serve, factors alone, it is truncated by weighted SVD.
    """
    structure: Any = methods.structure
    chosen: Structure = structure.chosen(choice)
    if not any(unmet(solver, chosen) for solver in methods.solvers):
        return replace(methods, structure=chosen)
    truncation = build("solver", Method(name="weighted_svd"))
    return replace(methods, structure=chosen, solvers=(truncation,))


def build(kind: str, method: Method) -> Any:
    """The registered class with the method's options, checked against the names and types of the class's fields.

    Raises:
        UserError: nothing of that name, an unknown or a missing option, or a value of a wrong type.
    """
    cls = find(kind, method.name)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for option in method.options:
        if option not in fields:
            hint = did_you_mean(option, fields) if fields else ": it has none"
            if (key := RENAMED.get(option)) in Step.model_fields:
                hint = f"; did you mean the step's key '{key}'?"
            raise UserError(f"{kind} '{method.name}' has no option '{option}'{hint}")
    for name, one in fields.items():
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if required and name not in method.options:
            raise UserError(f"{kind} '{method.name}' needs the option '{name}'")
    options = checked_options(cls, method.options, f"{kind} '{method.name}'")
    try:
        return cls(**options)
    except ValueError as error:
        raise UserError(f"{kind} '{method.name}': {error}") from error
