"""All steps before the first weight is solved: open, prune, plan, sensitivity pass. Both `plan` and `compress` take them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from compress.allocate.sensitivity import Sensitivity, chooses_sizes, needs_sensitivity_pass, sensitivity_pass
from compress.calibrate.corpus import Corpus
from compress.checkpoint.source import Source
from compress.models.skeleton import Skeleton, open_skeleton
from compress.pipeline.calibration import draw_corpus, fit_recipe
from compress.planning.make import make_plan
from compress.planning.plan import Plan
from compress.prune.depth import choose_blocks, without_blocks
from compress.prune.width import parts_of, width_pruned
from compress.recipe.recipe import Recipe
from compress.system.device import resolve_dtype

StepTimer = Callable[[str], AbstractContextManager[object]]
"""Step name → the context that the step runs in: it is timed and shown."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        source: the checkpoint.
        recipe: what to do with it.
        device: where blocks run.
        dtype: what they are computed in: ``"auto"`` (the model's own), ``"bf16"``, ``"fp16"`` or ``"fp32"``.
        seed: decides which windows are drawn, and all else that is drawn.
        format: the output's; the recipe's own if None.
        folder: temporary files go there.
        gradients: the folder that keeps gradient moments for other runs; None keeps none.
        plan_only: no weight will be solved: the sensitivity pass is left out unless sizes depend on it.
    """

    source: Source
    recipe: Recipe
    device: torch.device
    dtype: str
    seed: int
    format: str | None
    folder: Path
    gradients: Path | None = None
    plan_only: bool = False


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be solved.

    Attributes:
        skeleton: the model, pruned where the recipe prunes it.
        plan: what is done to its weights, with the ranks and sparsities that the sensitivity pass has chosen.
        dtype: what blocks are computed in.
        corpus: the calibration windows; None where nothing looks at data.
        sensitivity: what the sensitivity pass has gathered.
    """

    skeleton: Skeleton
    plan: Plan
    dtype: torch.dtype
    corpus: Corpus | None
    sensitivity: Sensitivity


@contextmanager
def prepared(request: Request, step: StepTimer = nullcontext) -> Iterator[Prepared]:
    """Take all steps before the first weight is solved. Temporary files last as long as the context.

    Raises:
        UserError: whatever would stop the run before its first weight.
    """
    skeleton = open_skeleton(request.source)
    recipe, note = fit_recipe(request.recipe, skeleton)
    dtype = resolve_dtype(request.dtype, skeleton.dtype, request.device.type)
    preparation = _Preparation(
        request, recipe, dtype, step, _Calibration(skeleton, recipe, request.seed, note)
    )
    with ExitStack() as stack:
        skeleton = preparation.depth_pruned(skeleton)
        skeleton = stack.enter_context(preparation.width_pruned(skeleton))
        plan = make_plan(skeleton, recipe, format=request.format, dtype=dtype)
        sensitivity = Sensitivity()
        if chooses_sizes(plan) if request.plan_only else needs_sensitivity_pass(plan):
            sensitivity = stack.enter_context(preparation.sensitivity(skeleton, plan))
            plan = make_plan(
                skeleton,
                recipe,
                format=request.format,
                dtype=dtype,
                ranks=sensitivity.ranks,
                sparsities=sensitivity.sparsities,
            )
        if plan.needs_data and not request.plan_only:
            preparation.tokens()
        yield Prepared(skeleton, plan, dtype, preparation.calibration.drawn, sensitivity)


@dataclass(frozen=True)
class _Calibration:
    """The calibration windows of a recipe, drawn when they are first asked for."""

    skeleton: Skeleton
    recipe: Recipe
    seed: int
    note: str

    @cached_property
    def corpus(self) -> Corpus:
        return draw_corpus(self.skeleton, self.recipe, self.seed, self.note)

    @property
    def drawn(self) -> Corpus | None:
        """The windows, if any step has asked for them."""
        return self.__dict__.get("corpus")


@dataclass(frozen=True)
class _Preparation:
    """The single steps, over what they all need."""

    request: Request
    recipe: Recipe
    dtype: torch.dtype
    step: StepTimer
    calibration: _Calibration

    def tokens(self) -> Tensor:
        """The calibration windows, int64 ``[samples, length]``."""
        if self.calibration.drawn is None:
            with self.step("data"):
                return self.calibration.corpus.tokens
        return self.calibration.corpus.tokens

    def depth_pruned(self, skeleton: Skeleton) -> Skeleton:
        """The model without the blocks that the recipe leaves out."""
        settings = self.recipe.depth_pruning
        if settings is None:
            return skeleton
        tokens = self.tokens()
        with self.step("prune"):
            dropped = choose_blocks(
                skeleton, tokens, settings.blocks, settings.by, device=self.request.device, dtype=self.dtype
            )
            return open_skeleton(without_blocks(skeleton.source, dropped))

    @contextmanager
    def width_pruned(self, skeleton: Skeleton) -> Iterator[Skeleton]:
        """The model with the widths that the recipe leaves it; refitted weights are files while the context lasts."""
        settings = self.recipe.width_pruning
        parts = (
            parts_of(skeleton, neuron_share=settings.neurons, group_share=settings.groups) if settings else ()
        )
        if settings is None or not parts:
            yield skeleton
            return
        tokens = self.tokens()
        self.request.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".prune-width-", dir=self.request.folder) as folder:
            with self.step("prune"):
                source = width_pruned(
                    skeleton,
                    parts,
                    tokens,
                    device=self.request.device,
                    dtype=self.dtype,
                    folder=Path(folder),
                    allocate=settings.allocate,
                    seed=self.request.seed,
                )
                narrower = open_skeleton(source)
            yield narrower

    @contextmanager
    def sensitivity(self, skeleton: Skeleton, plan: Plan) -> Iterator[Sensitivity]:
        """The sensitivity pass over the dense model."""
        tokens = self.tokens()
        with ExitStack() as stack:
            with self.step("sensitivity"):
                sensitivity = stack.enter_context(
                    sensitivity_pass(
                        skeleton,
                        plan,
                        tokens,
                        device=self.request.device,
                        dtype=self.dtype,
                        seed=self.request.seed,
                        near=self.request.folder,
                        keep=self.request.gradients,
                    )
                )
            yield sensitivity
