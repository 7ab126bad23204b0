"""From what a recipe's step names to the objects that do it, refusing pairs that cannot work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import torch

from compress.errors import UserError
from compress.recipe.recipe import Recipe
from compress.recipe.registry import did_you_mean, find
from compress.recipe.sections import Method, Prune, Quantize, Step
from compress.score.base import Score
from compress.solvers.base import BlockSolver, WeightSolver
from compress.solvers.nearest import Nearest
from compress.solvers.residual import Beside
from compress.structures.base import SparsityPattern, Structure
from compress.structures.choices import Choice
from compress.structures.low_rank.factors import Storage
from compress.structures.sparse.patterns import NM, Blocks, Unstructured
from compress.transforms.base import Transform


@dataclass(frozen=True)
class Methods:
    """The structure, the score and the solvers, in order, of one step.

    ``block_solvers`` take all of the step's weights in a block together, from where ``solvers`` have left them.
    """

    structure: Structure
    score: Score
    solvers: tuple[WeightSolver, ...]
    block_solvers: tuple[BlockSolver, ...] = ()

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that have to be gathered for these methods."""
        solvers: tuple[WeightSolver | BlockSolver, ...] = (*self.solvers, *self.block_solvers)
        return self.score.needs.union(*(solver.needs for solver in solvers))


def methods_of(step: Step, dtype: torch.dtype) -> Methods:
    """Build what ``step`` names; ``dtype`` is the model's, in which scales are stored.

    Raises:
        UserError: an unknown method or option, or a solver that cannot serve the structure.
    """
    structure = structure_of(step, dtype)
    built = tuple(_beside(_build("solver", method), structure) for method in step.solver)
    score_name = step.score or Method(name=built[-1].score)
    score = _build("score", score_name)
    for method, solver in zip(step.solver, built, strict=True):
        if lacking := solver.requires - structure.capabilities:
            raise UserError(
                f"solver '{method.name}' cannot serve this step: it needs a structure that can {' and '.join(sorted(lacking))}"
            )
    solvers = tuple(solver for solver in built if not _takes_blocks(solver))
    if built[: len(solvers)] != solvers:
        names = ", ".join(method.name for method in step.solver)
        raise UserError(f"solver [{names}]: a solver of whole blocks comes after those of single weights")
    if step.lowrank is not None and step.lowrank.allocate != "uniform" and not hasattr(built[-1], "options"):
        raise UserError(
            f"'lowrank.allocate' does not go with solver '{step.solver[-1].name}': truncate, lost and oats know a rank's loss"
        )
    return Methods(structure, score, solvers or (Nearest(),), built[len(solvers) :])


def _beside(solver: Any, structure: Structure) -> Any:
    """In a sum, solvers that know nothing of factors work on the other part."""
    inner = getattr(structure, "inner", None)
    if "compensate" not in structure.capabilities or inner is None or _takes_blocks(solver):
        return solver
    fits = (
        solver.requires <= inner.capabilities and not solver.requires <= {"project"} & structure.capabilities
    )
    return Beside(solver) if fits else solver


def _takes_blocks(solver: WeightSolver | BlockSolver) -> bool:
    return getattr(solver, "scope", "weight") == "block"


def transforms_of(recipe: Recipe) -> tuple[Transform, ...]:
    """The transforms that a recipe names, in order."""
    return tuple(_build("transform", method) for method in recipe.transforms)


def structure_of(step: Step, dtype: torch.dtype) -> Structure:
    """The one structure that a step's ``quantize``, ``prune`` and ``lowrank`` make together."""
    if step.quantize is None and step.prune is None and step.lowrank is None:
        raise UserError(
            "a step needs 'quantize', 'prune' or 'lowrank': nothing else says what becomes of its weights"
        )
    alone = step.quantize is None and step.prune is None
    inner = None if alone else _rounded(step, dtype)
    return inner if step.lowrank is None and inner is not None else _low_rank(step, inner, dtype)


def _low_rank(step: Step, inner: Structure | None, dtype: torch.dtype) -> Structure:
    """Factors, alone or in a sum."""
    settings = step.lowrank
    assert settings is not None
    if step.quantize is not None and step.quantize.activations is not None:
        raise UserError("'lowrank' does not go with 'quantize.activations': its sums are not of integers")
    grid = None
    if settings.bits is not None:
        grid = find("structure", "integer")(
            settings.bits, settings.group_size, scales="mse", scale_dtype=dtype
        )
    factors: Any = find("structure", "factors")(
        settings.ratio,
        settings.rank,
        Storage(dtype, grid),
        inside=inner is not None or settings.columns is not None,
    )
    if settings.columns is not None and inner is not None:
        raise UserError(
            "'lowrank.columns' does not go with 'quantize' or 'prune': keep one of them beside the factors"
        )
    if settings.columns is not None:
        factors = find("structure", "factors-and-columns")(factors, settings.columns)
    structure: Structure = factors if inner is None else find("structure", "factors-and")(factors, inner)
    return structure


def _rounded(step: Step, dtype: torch.dtype) -> Structure:
    """What ``quantize`` and ``prune`` make together."""
    grid = None if step.quantize is None else _grid(step.quantize, dtype)
    if step.prune is None:
        assert grid is not None
        return grid
    if step.quantize is not None and step.quantize.activations is not None:
        raise UserError("'prune' does not go with 'quantize.activations': its weights are stored dense")
    if step.quantize is not None and step.quantize.type == "nf4":
        raise UserError("'prune' does not go with 'quantize.type: nf4': choose 'type: int'")
    pattern = _pattern(step.prune)
    structure: Structure = (
        find("structure", "masked")(pattern, dtype)
        if grid is None
        else find("structure", "masked-grid")(pattern, grid)
    )
    return structure


def _grid(settings: Quantize, dtype: torch.dtype) -> Structure:
    if settings.activations is not None and (settings.bits != 8 or not settings.symmetric):
        raise UserError("'quantize.activations: 8' goes with symmetric 8-bit weights only")
    if settings.type == "nf4":
        nf4: Structure = find("structure", "nf4")(settings.group_size, dtype)
        return nf4
    grid: Structure = find("structure", "integer")(**settings.model_dump(exclude={"type"}), scale_dtype=dtype)
    return grid


def _pattern(settings: Prune) -> SparsityPattern:
    if settings.pattern is not None:
        n, m = (int(part) for part in settings.pattern.split(":"))
        return NM(n, m)
    assert settings.sparsity is not None
    if settings.block is not None:
        return Blocks(settings.sparsity, *settings.block)
    return Unstructured(settings.sparsity, "row" if settings.scope == "row" else "layer")


def with_sparsity(structure: Any, sparsity: float) -> Structure:
    """A structure of any pattern of zeros with another share of them; which, is chosen over the layer as before."""
    changed: Structure = replace(structure, pattern=replace(structure.pattern, sparsity=sparsity))
    return changed


def with_choice(methods: Methods, choice: Choice) -> Methods:
    """The methods for a weight whose rank, and what goes with it, were chosen; factors alone are truncated."""
    structure: Any = methods.structure
    chosen: Structure = structure.chosen(choice)
    if chosen.capabilities >= structure.capabilities:
        return replace(methods, structure=chosen)
    last: Any = methods.solvers[-1]
    shared = {key: getattr(last, key) for key in ("asymmetric", "damping") if hasattr(last, key)}
    truncate = _build("solver", Method(name="weighted_svd", options=shared))
    return replace(methods, structure=chosen, solvers=(truncate,))


def _build(kind: str, method: Method) -> Any:
    """The registered class with the method's options, each checked against the class's own fields."""
    cls = find(kind, method.name)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for option in method.options:
        if option not in fields:
            hint = did_you_mean(option, fields) if fields else ": it has none"
            raise UserError(f"{kind} '{method.name}' has no option '{option}'{hint}")
    try:
        return cls(**method.options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{kind} '{method.name}': {error}") from error
