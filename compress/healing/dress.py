"""DReSS: what pruning will leave out fades while the whole model is trained, so that the rest takes over; then it is cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.checkpoint.sliced_source import Cut, CutSource
from compress.checkpoint.source import Source
from compress.healing.ends.best import Judge, Values
from compress.healing.loop import Training
from compress.healing.modules import train_parameter
from compress.healing.rules import Rules
from compress.healing.student import Student
from compress.healing.trained import Trained, trained_tensor

STATE = "dress.safetensors"
"""The state of this training, beside that of healing."""


@dataclass(frozen=True)
class Fading:
    """A penalty ``λ_t ‖θ_going‖²`` whose step is taken apart from the gradient, as decay in AdamW is, with λ growing so that
    what goes is 0 at the end: after step t of T it is multiplied by ``(T − t) / (T − t + 1)``.

    DReSS (arXiv:2501.17905) adds the norm of what goes to the loss with a fixed factor; with the few steps here
    that leaves much of it.

    Attributes:
        going: parameter → what goes of it, as dimension and entries.
    """

    going: Mapping[str, tuple[Cut, ...]]

    name: ClassVar[str] = "fading"

    def __call__(self, trained: Mapping[str, Trained]) -> Tensor:
        """Nothing: it acts behind the step."""
        return torch.zeros(())

    @torch.no_grad()
    def after_step(self, trained: Mapping[str, Trained], step: int, steps: int) -> None:
        """Let what goes fade, ``step`` (from 1) of ``steps`` being done."""
        left = (steps - step) / (steps - step + 1)
        for name, cuts in self.going.items():
            master = trained[name].master
            for cut in cuts:
                index = cut.index.to(master.device)
                master.index_copy_(cut.dim, index, left * master.index_select(cut.dim, index))


@dataclass(frozen=True)
class Last:
    """An end that keeps the last iterate, whatever was better before."""

    student: Student

    name: ClassVar[str] = "last"

    def choose(self, start: Values, best: Values, best_kl: float, judge: Judge) -> tuple[Values, float]:
        """See :class:`~compress.healing.ends.best.Best`."""
        last = self.student.values()
        return last, judge(last)


def dressed(
    source: CutSource,
    parameters: Mapping[str, str],
    whole: Source,
    model: PreTrainedModel,
    make: Callable[[Student, Rules, Path], Training],
    rules: Rules,
    folder: Path,
) -> dict[str, Tensor]:
    """Train the whole model while what the source cuts away fades.

    Args:
        source: the pruned one.
        parameters: what is trained → disk tensor.
        whole: the dense checkpoint.
        model: the dense model; it is changed.
        make: makes the training of a student by rules, with its state in a file.
        rules: of healing, whose end and measurements are replaced.
        folder: of the state.

    Returns:
        Parameter → its trained values fp32, cut.
    """
    model.requires_grad_(False)
    trained: dict[str, Trained] = {}
    for name, disk in parameters.items():
        stored = whole.read(disk).to(model.get_parameter(name).device)
        trained[name] = trained_tensor(name, "norms" if stored.ndim == 1 else "values", stored)
        train_parameter(model, trained[name])
    cuts = {name: _cuts(source, disk) for name, disk in parameters.items()}
    going = {
        name: tuple(_others(cut, trained[name].master) for cut in own) for name, own in cuts.items() if own
    }
    student = Student(model, {}, trained)
    patience = rules.evaluations + 1
    changed = replace(
        rules, end=Last(student), penalties=(*rules.penalties, Fading(going)), patience=patience
    )
    training = make(student, changed, folder / STATE)
    training.run()
    return {name: _cut(one.master.detach(), cuts[name]) for name, one in trained.items()}


def take_better(training: Training, values: Mapping[str, Tensor]) -> bool:
    """Let the student begin at ``values`` where its held-out KL is lower there; whether it does."""
    here = training.student.values()
    before = training.judge()
    training.student.restore({**here, **values})
    better = training.judge() < before
    if not better:
        training.student.restore(here)
    return better


def _cuts(source: CutSource, disk: str) -> tuple[Cut, ...]:
    return source.cuts.get(disk, source.refitted.get(disk, ()))


def _others(cut: Cut, tensor: Tensor) -> Cut:
    """All entries of the dimension that a cut does not keep."""
    kept = torch.zeros(tensor.shape[cut.dim], dtype=torch.bool)
    kept[cut.index] = True
    return Cut(cut.dim, (~kept).nonzero().flatten())


def _cut(tensor: Tensor, cuts: tuple[Cut, ...]) -> Tensor:
    for cut in cuts:
        tensor = tensor.index_select(cut.dim, cut.index.to(tensor.device))
    return tensor
