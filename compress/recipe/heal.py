"""The section ``heal`` of a recipe: what is trained after the weights are compressed, on what, and by which rule."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from compress.recipe.section import Method, Section, as_method, as_methods

_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMbB]?)")
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


def token_count(value: Any) -> Any:
    """A count of tokens: a number, or a text such as ``500k`` or ``2M``; anything else as it is."""
    if not isinstance(value, str) or (match := _COUNT.fullmatch(value.strip())) is None:
        return value
    return round(float(match[1]) * _UNITS[match[2].lower()])


def _as_names(value: Any) -> Any:
    """One name is a list of one."""
    return [value] if isinstance(value, str) else value


class Cache(Section):
    """What is kept on disk of the teacher's predictions: the ``k`` most likely tokens of every position."""

    k: int = Field(64, ge=1, le=1 << 20)


class Dress(Section):
    """A training of the whole model before healing, in which the widths that pruning leaves out fade to 0 (DReSS).

    Attributes:
        share: of the steps of ``heal``, which are fewer by as many.
    """

    share: float = Field(0.5, gt=0, lt=1)


class Heal(Section):
    """Training of what the compressed checkpoint may change without a change of its layout, against the dense model.

    Attributes:
        train: what is trained (:data:`compress.recipe.registry.TRAINABLES`): ``norms``, ``scales``, ``values``, ``factors``, ….
        loss: the loss on the logits of student and teacher (:data:`compress.recipe.registry.LOSSES`); several are added.
        filter: how much each position counts (:data:`compress.recipe.registry.FILTERS`); ``null`` counts all alike.
        sampler: which windows are trained on (:data:`compress.recipe.registry.SAMPLERS`).
        penalties: terms on the trained tensors (:data:`compress.recipe.registry.PENALTIES`).
        optimizer: :data:`compress.recipe.registry.OPTIMIZERS`.
        schedule: :data:`compress.recipe.registry.SCHEDULES`.
        end: which of the iterates is kept (:data:`compress.recipe.registry.ENDS`).
        tokens: how many tokens are trained on; ``500k`` and ``2M`` are read too.
        rate: the largest learning rate, relative to the size of each trained tensor (of codes: to a step of the grid); ``auto``
            chooses it by short trials on the held-out windows.
        batch: windows in a step.
        length: tokens in a window.
        data: the text, as in ``calibrate``; ``null`` takes the calibration text.
        holdout: windows at the end of the text that are never trained on and decide which iterate is kept.
        evaluations: how often the held-out KL is measured.
        patience: measurements without a fall of the held-out KL after which training stops.
        checkpointing: keep the inputs of blocks alone and compute a block's activations anew in the backward pass.
        offload: keep the optimizer's state, the start and the best iterate in a mapped file beside the output, which the system
            may take out of memory.
        teachers: further dense models; training aims at the mean of their logits and the source's, and the source judges.
        cache: keep the teacher's most likely tokens on disk, in the place of the teacher in memory.
        dress: first train the whole model to do without the widths that ``width_pruning`` leaves out.
        earlier: what was trained when the checkpoint was healed before; written by ``compress heal``.
    """

    train: Annotated[tuple[Method, ...], BeforeValidator(as_methods), Field(min_length=1)]
    loss: Annotated[tuple[Method, ...], BeforeValidator(as_methods), Field(min_length=1)] = (
        Method(name="kl"),
    )
    filter: Annotated[Method | None, BeforeValidator(as_method)] = None
    sampler: Annotated[Method, BeforeValidator(as_method)] = Method(name="fresh")
    penalties: Annotated[tuple[Method, ...], BeforeValidator(as_methods)] = ()
    optimizer: Annotated[Method, BeforeValidator(as_method)] = Method(name="adamw")
    schedule: Annotated[Method, BeforeValidator(as_method)] = Method(name="linear")
    end: Annotated[Method, BeforeValidator(as_method)] = Method(name="best")
    tokens: Annotated[int, BeforeValidator(token_count), Field(ge=2, le=1 << 50)] = 500_000
    rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | Literal["auto"] = "auto"
    batch: int = Field(4, ge=1, le=65_536)
    length: int = Field(512, ge=2, le=1 << 20)
    data: str | None = None
    holdout: int = Field(16, ge=1, le=100_000)
    evaluations: int = Field(20, ge=1, le=100_000)
    patience: int = Field(5, ge=1)
    checkpointing: bool = False
    offload: bool = False
    teachers: Annotated[tuple[str, ...], BeforeValidator(_as_names)] = ()
    cache: Cache | None = None
    dress: Dress | None = None
    earlier: tuple[Method, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        """``heal: norms`` and ``heal: [norms, scales]`` say what is trained, and nothing else."""
        return data if isinstance(data, Mapping) or data is None else {"train": data}

    @property
    def dressing(self) -> int:
        """Steps of the training before healing; 0 without one."""
        return 0 if self.dress is None else min(self.steps - 1, round(self.dress.share * self.steps))

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return max(1, -(-self.tokens // (self.batch * self.length)))
