"""The single steps before the first weight is solved: the windows of text, pruning, rotation, the pass with gradients."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.allocate.sensitivity import Sensitivity, sensitivity_pass
from compress.calibrate.corpus import Corpus
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton
from compress.pipeline.calibration import (
    draw_corpus,
)
from compress.pipeline.passes import pass_folder, pass_folders
from compress.pipeline.request import Request
from compress.planning.make import make_plan
from compress.planning.methods import rotation_of
from compress.planning.plan import Plan
from compress.prune.block_removal import without_blocks
from compress.prune.depth import choose_blocks, named_blocks
from compress.prune.expert_likeness import expert_likeness
from compress.prune.expert_saliency import expert_saliency
from compress.prune.experts import first_experts, routed_experts, without_experts
from compress.prune.merge_experts import first_merged, merged_experts
from compress.prune.notes import whole_experts_note, whole_note
from compress.prune.units import Part
from compress.prune.width import parts_of, width_of, width_pruned
from compress.recipe.recipe import Recipe
from compress.system.monitor import Monitor, return_free_memory
from compress.system.ranks import current_ranks
from compress.system.scratch import scratch_folder
from compress.transforms.learn import learned_plan
from compress.transforms.rotate import rotate
from compress.transforms.rotation import notes_of, plan_rotation

_LOG = logging.getLogger(__name__)

StepTimer = Callable[[str], AbstractContextManager[object]]
"""Step name → the context that the step runs in: it is timed and shown."""


@dataclass(frozen=True)
class Calibration:
    """The calibration windows of a recipe, drawn when they are first asked for."""

    skeleton: Skeleton
    recipe: Recipe
    seed: int
    note: str

    @cached_property
    def corpus(self) -> Corpus:
        """The windows."""
        return draw_corpus(self.skeleton, self.recipe, self.seed, self.note)

    @property
    def drawn(self) -> Corpus | None:
        """The windows, if any step has asked for them."""
        return self.__dict__.get("corpus")


@dataclass(frozen=True)
class Preparation:
    """The single steps, over what they all need."""

    request: Request
    recipe: Recipe
    dtype: torch.dtype
    step: StepTimer
    calibration: Calibration
    settings: Mapping[str, Any]
    monitor: Monitor | None = None

    def folder(self, name: str) -> AbstractContextManager[Path]:
        """The folder of a pass: one that another run goes on with, or a temporary one for a plan."""
        if self.request.output is None:
            return scratch_folder(self.request.folder, f".compress-{name}-")
        return pass_folder(pass_folders(self.request.output.folder)[name], self.settings, self.monitor)

    def tokens(self) -> Tensor:
        """The calibration windows, int64 ``[samples, length]``."""
        if self.calibration.drawn is None:
            if self.request.plan_only:
                _LOG.warning(
                    "the sizes of this recipe depend on data: the model is run for this plan, on the CPU, which takes as long "
                    "as it does in a run"
                )
            with self.step("data"):
                tokens = self.calibration.corpus.tokens
                return_free_memory()  # of the tokenizer, many times its file
                return tokens
        return self.calibration.corpus.tokens

    def depth_pruned(self, skeleton: Skeleton) -> Skeleton:
        """The model without the blocks that the recipe leaves out."""
        settings = self.recipe.depth_pruning
        if settings is None:
            return skeleton
        if not isinstance(settings.blocks, int):
            return open_skeleton(without_blocks(skeleton, named_blocks(skeleton, settings.blocks)))
        tokens = self.tokens()
        with self.step("prune"):
            dropped = choose_blocks(
                skeleton, tokens, settings.blocks, settings.by, device=self.request.device, dtype=self.dtype
            )
            return open_skeleton(without_blocks(skeleton, dropped))

    @contextmanager
    def fewer_experts(self, skeleton: Skeleton) -> Iterator[tuple[Skeleton, tuple[str, ...]]]:
        """The model with as many routed experts as the recipe leaves it, and a sentence where it leaves all; merged ones are
        files while the context lasts.

        Raises:
            UserError: the model has no experts that are known here.
        """
        settings = self.recipe.width_pruning
        if settings is None or settings.experts is None:
            yield skeleton, ()
            return
        routed = routed_experts(skeleton, settings.experts)
        if not routed.prunes:
            said = () if settings.experts == 1 else (whole_experts_note(routed, settings.experts),)
            yield skeleton, said
            return
        merges = settings.experts_by == "merge"
        first = first_merged(skeleton, routed) if merges else first_experts(skeleton, routed)
        if self.request.plan_only:
            yield open_skeleton(first), ()
            return
        tokens = self.tokens()
        options: dict[str, Any] = {"device": self.request.device, "dtype": self.dtype}
        with self.folder("experts") if merges else nullcontext(Path()) as folder:
            with self.step("prune"):
                if settings.experts_by == "merge":
                    likeness = expert_likeness(skeleton, routed, tokens, **options)
                    source = merged_experts(skeleton, routed, likeness, folder)
                else:
                    saliency = expert_saliency(skeleton, routed, tokens, settings.experts_by, **options)
                    kept = [routed.best(values) for values in saliency]
                    source = without_experts(skeleton, routed, kept)
                fewer = open_skeleton(source)
            yield fewer, ()

    def parts(self, skeleton: Skeleton) -> tuple[Part, ...]:
        """The kinds of units that the recipe prunes the blocks' widths of."""
        settings = self.recipe.width_pruning
        if settings is None:
            return ()
        return parts_of(
            skeleton,
            neuron_share=settings.neurons,
            group_share=settings.groups,
            neuron_counts=settings.counts,
        )

    def width_notes(self, skeleton: Skeleton, experts: tuple[str, ...]) -> tuple[str, ...]:
        """A sentence on every share below 1 that rounds to all units.

        Args:
            skeleton: the model, without the experts that go.
            experts: what is to be said of them.

        Raises:
            UserError: the recipe does nothing else.
        """
        parts = self.parts(skeleton)
        shares = [getattr(self.recipe.width_pruning, part.name) for part in parts]
        notes = tuple(
            whole_note(part, share)
            for part, share in zip(parts, shares, strict=True)
            if not part.prunes and share is not None and share < 1
        )
        alone = not self.recipe.steps and self.recipe.depth_pruning is None
        said = (*experts, *notes)
        if said and alone and not skeleton.source.width_pruned and not any(part.prunes for part in parts):
            raise UserError(f"The recipe prunes nothing: {said[0]}.")
        return notes

    @contextmanager
    def width_pruned(self, skeleton: Skeleton) -> Iterator[Skeleton]:
        """The model with the widths that the recipe leaves it; refitted weights are files while the context lasts."""
        settings, parts = self.recipe.width_pruning, self.parts(skeleton)
        parts = tuple(part for part in parts if part.prunes)
        if settings is None or not parts:
            yield skeleton
            return
        if self.request.plan_only and settings.counts is not None:
            yield open_skeleton(width_of(skeleton, parts))
            return
        tokens = self.tokens()
        with self.folder("width") as folder:
            with self.step("prune"):
                source = width_pruned(
                    skeleton,
                    parts,
                    tokens,
                    device=self.request.device,
                    dtype=self.dtype,
                    folder=folder,
                    allocate=settings.allocate,
                    merge=settings.merge,
                    seed=self.request.seed,
                    gradient_tokens=self.recipe.calibrate.gradient_tokens,
                )
                narrower = open_skeleton(source)
            yield narrower

    @contextmanager
    def rotated(self, skeleton: Skeleton) -> Iterator[tuple[Skeleton, tuple[str, ...]]]:
        """The model in the bases that the recipe rotates it to, and sentences on them."""
        settings = rotation_of(self.recipe)
        if settings is None:
            yield skeleton, ()
            return
        plan = plan_rotation(skeleton, settings, self.request.seed)
        with self.step("rotate"):
            rotated = open_skeleton(rotate(skeleton, plan))
        if settings.residual != "learned" or self.request.plan_only:
            yield rotated, notes_of(skeleton, plan)
            return
        planned = make_plan(rotated, self.recipe, format=self.request.format, dtype=self.dtype)
        tokens = self.tokens()
        with self.folder("rotation") as folder:
            with self.step("rotate"):
                plan = learned_plan(
                    rotated,
                    plan,
                    settings,
                    {weight.view: weight.activations for weight in planned.weights},
                    tokens,
                    device=self.request.device,
                    folder=folder,
                )
                rotated = open_skeleton(rotate(skeleton, plan))
            yield rotated, notes_of(skeleton, plan)

    @contextmanager
    def sensitivity(self, skeleton: Skeleton, plan: Plan) -> Iterator[Sensitivity]:
        """The sensitivity pass over the dense model; its files last as long as the context."""
        tokens = self.tokens()
        with self.folder("sensitivity") as folder:
            with self.step("sensitivity"):
                sensitivity = sensitivity_pass(
                    skeleton,
                    plan,
                    tokens,
                    device=self.request.device,
                    dtype=self.dtype,
                    seed=self.request.seed,
                    folder=folder,
                    keep=self.request.gradients,
                    ranks=current_ranks(),
                )
                return_free_memory()
            yield sensitivity
