"""Weights outside the decoder blocks: which methods they can have, since only the output head has inputs that are observed."""

from __future__ import annotations

from compress.errors import UserError
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.planning.methods import Methods
from compress.recipe.grids import OutsideGrid
from compress.recipe.recipe import Recipe
from compress.recipe.section import Method
from compress.recipe.sections import Step
from compress.score.statistics import GRADIENT_NEEDS

SOLVED = (Method(name="gptq", options={"damping": 0.1}),)
"""The solvers of a head that ``embeddings`` or ``head`` quantizes in a recipe that looks at data anyway.

The damping stands for the rows that a tied weight is looked up by, whose errors count in every direction alike.
"""


def check_outside(skeleton: Skeleton, view: WeightView, methods: Methods, place: str) -> None:
    """Refuse methods that look at data which a weight outside the decoder blocks does not have.

    Args:
        skeleton: the model.
        view: a weight outside its blocks.
        methods: of the step that takes it.
        place: the key of that step, for the sentence.

    Raises:
        UserError: it does not have them.
    """
    give = "give it a step of its own with"
    if methods.block_solvers:
        raise UserError(
            f"{place}: {view.name} lies outside the decoder blocks, and a solver of this step works on whole blocks: {give} "
            "another one, such as gptq for the output head or nearest"
        )
    if not methods.needs:
        return
    if not view.in_head:
        raise UserError(
            f"{place}: {view.name} lies outside the decoder blocks, where only the output head's inputs are observed: {give} a "
            "solver that needs no data, such as nearest"
        )
    if methods.needs & GRADIENT_NEEDS:
        raise UserError(
            f"{place}: {view.name} is the output head, of which no gradients are gathered: {give} a score of its inputs, such "
            "as activation"
        )
    if skeleton.flow.without_head:
        raise UserError(
            f"{place}: {type(skeleton.model).__name__} does not call its output head as a module, so that its inputs cannot be "
            f"observed: {give} a solver that needs no data, such as nearest"
        )


def with_solver_of_head(recipe: Recipe, index: int, view: WeightView, looks_at_data: bool) -> Step:
    """Step ``index`` of :attr:`Recipe.all_steps` as it applies to ``view``.

    A step that ``embeddings`` or ``head`` stands for, without ``solver``, solves what the output head multiplies by with GPTQ
    on the head's inputs, where the rest of the recipe looks at data; all else it rounds to nearest.
    """
    step = recipe.all_steps[index]
    left_open = isinstance(step.quantize, OutsideGrid) and step.quantize.solver is None
    return (
        step.model_copy(update={"solver": SOLVED}) if left_open and looks_at_data and view.in_head else step
    )
