"""From a recipe's ``heal`` to the entries of the registries, and what does not go together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.formats.dense_source import open_dense
from compress.healing.inner import Inner
from compress.healing.objective import Objective
from compress.healing.trained import Trained
from compress.models.skeleton import Skeleton
from compress.planning.methods import build
from compress.recipe.heal import Heal

NOTHING_INSIDE = Inner()


@dataclass(frozen=True)
class Rules:
    """How a training goes.

    Attributes:
        objective: what falls.
        optimizer, schedule, end: entries of the registries.
        penalties: terms on the trained tensors. inner: terms on what is inside the models.
        sizes: windows of every step, where they are not ``batch`` in each.
        steps, batch: how many, and windows in each.
        rate: the largest learning rate; ``None`` is chosen by short trials (:mod:`compress.healing.rates`).
        evaluations, patience: measurements in all, and how many without a fall end the training.
    """

    objective: Objective
    optimizer: Any
    schedule: Any
    end: Any
    penalties: tuple[Any, ...]
    steps: int
    batch: int
    rate: float | None
    evaluations: int
    patience: int
    inner: Inner = NOTHING_INSIDE
    sizes: tuple[int, ...] = ()

    @property
    def recordable(self) -> bool:
        """Whether every step does the same to other tokens with another rate, so that a GPU can record it."""
        simple = not (self.penalties or self.sizes or self.inner.losses or self.inner.penalties)
        return simple and self.objective.recordable

    def begin(self, step: int) -> int:
        """The first window of a step, from 0: as many as were trained on before it."""
        return sum(self.sizes[:step]) if self.sizes else step * self.batch

    def measured(self, step: int) -> bool:
        """Whether the held-out KL is measured after ``step`` steps."""
        count = min(self.evaluations, self.steps)
        return step * count // self.steps > (step - 1) * count // self.steps


def open_teachers(given: Any, skeleton: Skeleton, *, trust_remote_code: bool) -> tuple[Source, ...]:
    """The further teachers that a recipe names, which have to know the same tokens.

    Raises:
        UserError: one that cannot be opened, or knows others.
    """
    names = [given] if isinstance(given, str) else list(given)
    found = tuple(open_dense(name, trust_remote_code=trust_remote_code) for name in names)
    words = int(skeleton.model.config.get_text_config().vocab_size)
    for name, source in zip(names, found, strict=True):
        config = source.config
        count = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
        if count != words:
            raise UserError(
                f"heal: the teacher {name} has {count} tokens and the model {words}: take one with its tokens"
            )
    return found


def check_rules(heal: Heal) -> None:
    """Refuse what does not go together.

    Raises:
        UserError: two entries of which one needs what the other takes away, or an option out of range.
    """
    for kind, method in (("schedule", heal.schedule), ("end", heal.end), ("sampler", heal.sampler)):
        build(kind, method)
    names = {method.name for method in heal.train}
    for method in heal.train:
        for other in sorted(names & getattr(build("trainable", method), "excludes", frozenset())):
            raise UserError(
                f"heal: '{method.name}' with these options sets what '{other}' trains: leave one of them out"
            )
    inner = [method.name for method in heal.loss if hasattr(build("loss", method), "of_states")]
    if heal.cache is not None and inner:
        raise UserError(
            f"heal: loss '{inner[0]}' reads the teacher's blocks, which 'cache' does not keep: leave one of them out"
        )
    forward_only = hasattr(build("optimizer", heal.optimizer), "step_forward")
    flat = [method.name for method in heal.penalties if hasattr(build("penalty", method), "around")]
    if forward_only and flat:
        raise UserError(
            f"heal: penalty '{flat[0]}' needs gradients, and optimizer '{heal.optimizer.name}' takes none: leave one out"
        )


def check_penalties(penalties: Iterable[Any], trained: Mapping[str, Trained]) -> None:
    """Refuse penalties that would do nothing.

    Raises:
        UserError: one that reads trained tensors, and none of these is of its kind.
    """
    for penalty in penalties:
        acts_elsewhere = any(hasattr(penalty, name) for name in ("after_step", "around", "of_output"))
        if not acts_elsewhere and not penalty(trained).requires_grad:
            kinds = ", ".join(sorted({one.kind for one in trained.values()}))
            raise UserError(
                f"heal: penalty '{penalty.name}' finds nothing to act on among what is trained ({kinds}): leave it out"
            )


def rules_of(heal: Heal, windows: Tensor) -> Rules:
    """The rules of the training on ``windows`` ``[steps × batch, length]`` that a recipe describes."""
    end = build("end", heal.end)
    losses = [build("loss", method) for method in heal.loss]
    penalties = tuple(build("penalty", method) for method in heal.penalties)
    inner = Inner(
        [loss for loss in losses if hasattr(loss, "of_states")],
        [penalty for penalty in penalties if hasattr(penalty, "of_output")],
    )
    schedule = build("schedule", heal.schedule)
    sizes = schedule.sizes(heal.batch, windows.shape[0]) if hasattr(schedule, "sizes") else ()
    return Rules(
        Objective(
            [loss for loss in losses if not hasattr(loss, "of_states")],
            None if heal.filter is None else build("filter", heal.filter),
            getattr(end, "smoothing", 0.0),
        ),
        build("optimizer", heal.optimizer),
        schedule,
        end,
        penalties,
        len(sizes) or windows.shape[0] // heal.batch,
        heal.batch,
        None if heal.rate == "auto" else heal.rate,
        heal.evaluations,
        heal.patience,
        inner,
        sizes,
    )
