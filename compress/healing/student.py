"""The model that is trained: packed layers with trained tensors in the places that the recipe names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from compress_kernels.modules import PackedLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.errors import UserError
from compress.formats.dense_source import open_any
from compress.formats.read import packed_weights
from compress.healing.adapted import (
    apart_from_adapters,
    change_parameter,
    units_of_factors,
    with_adapters,
)
from compress.healing.bitwise import TrainedBits
from compress.healing.modules import TrainedLinear, train_parameter
from compress.healing.trainables.base import CODES, MATRICES, low_rank_parts
from compress.healing.trainables.bits import Bits
from compress.healing.trainables.codes import Codes
from compress.healing.trained import Trained, TrainedWeight, trained_tensor
from compress.healing.weights import trained_weight
from compress.planning.plan import Plan, PlannedWeight
from compress.runtime.experts import PackedExperts
from compress.runtime.load import load


@dataclass(frozen=True)
class Student:
    """A model in training.

    Attributes:
        model: computes with what would be stored now.
        weights: planned weight → its trained form.
        parameters: dense parameters in training, by name, and what adapters and losses train beside them.
        changed: dense parameters that adapters change → what will be stored.
    """

    model: PreTrainedModel
    weights: Mapping[str, TrainedWeight]
    parameters: dict[str, Trained]
    changed: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)

    @property
    def trained(self) -> dict[str, Trained]:
        """Every trained tensor by its name."""
        packed = {one.name: one for weight in self.weights.values() for one in weight.trained.values()}
        return packed | dict(self.parameters)

    def put_starts(self, place: Callable[[str, Tensor], Tensor]) -> None:
        """Let ``place`` say where what the masters began at is kept."""
        for owner in (self.parameters, *(weight.trained for weight in self.weights.values())):
            for key, one in owner.items():
                owner[key] = replace(one, start=place(f"began:{one.name}", one.start))

    def at(self, done: float, noise: int | None = None) -> None:
        """Tell the weights what share of the steps is done and, in a step, its number."""
        for weight in self.weights.values():
            weight.done, weight.noise = done, noise

    def stored(self, name: str) -> Tensor:
        """A dense parameter as it will be stored."""
        return self.changed[name]() if name in self.changed else self.parameters[name].stored

    def values(self) -> dict[str, Tensor]:
        """Copies of all masters."""
        return {name: one.master.detach().clone() for name, one in self.trained.items()}

    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Set all masters."""
        with torch.no_grad():
            for name, one in self.trained.items():
                one.master.copy_(values[name])


def open_student(
    folder: Path,
    plan: Plan,
    entries: Sequence[Any],
    parameters: Mapping[str, str],
    *,
    teacher: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool,
) -> Student:
    """Load the checkpoint ``folder`` for training.

    Args:
        folder: a compressed checkpoint.
        plan: what it was compressed by.
        entries: the trainables.
        parameters: dense parameters to train → their tensors on disk.
        teacher: the dense model, whose weights tell where codes begin.
        device, dtype: where and in what it computes.
        trust_remote_code: run Python code that comes with the checkpoint.

    Raises:
        UserError: a trainable that finds nothing to train.
    """
    model = load(folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    source = open_any(folder, trust_remote_code=trust_remote_code)
    layouts = {name: weight.layout for name, weight in packed_weights(source).items()}
    found: dict[str, TrainedWeight] = {}
    for planned in plan.weights:
        place = _place(model, planned)
        if place is None or planned.name not in layouts:
            continue
        packed = model.get_submodule(place)
        assert isinstance(packed, PackedLinear)
        kinds = {s: entry.name for entry in entries for s in entry.suffixes(packed.layout, packed.shape)}
        if kinds:
            before = _dense_weight(teacher, plan, planned) if CODES in kinds else None
            found[planned.name] = _trained(planned, packed, kinds, entries, before)
            set_all_units(found[planned.name], entries)
            found[planned.name] = with_adapters(found[planned.name], entries)
            model.set_submodule(place, TrainedLinear(packed, found[planned.name]))
    dense: dict[str, Trained] = {}
    changed: dict[str, Callable[[], Tensor]] = {}
    for name, disk in parameters.items():
        stored = source.read(disk).to(model.get_parameter(name).device)
        adapter = next((entry for entry in entries if stored.ndim == 2 and hasattr(entry, "change")), None)
        if adapter is None:
            dense[name] = _dense(model, stored, name, entries)
            continue
        made = adapter.change(name, stored.to(torch.float32))
        dense |= {one.name: one for one in made.masters.values()}
        changed[name] = change_parameter(model, name, stored, made)
    student = Student(model, found, dense, changed)
    _check_found(student, entries, folder)
    return student


def _dense_weight(teacher: nn.Module, plan: Plan, planned: PlannedWeight) -> Tensor | None:
    """The weight ``[out, in]`` that was compressed; None where a transform, a rotation or pruning changed it before."""
    recipe = plan.recipe
    if plan.transforms or plan.rotation or recipe.depth_pruning or recipe.width_pruning:
        return None
    dense = planned.view.get(teacher.get_parameter(planned.view.parameter)).detach()
    return planned.in_rounded_basis(dense)


def _trained(
    planned: PlannedWeight,
    packed: PackedLinear,
    kinds: Mapping[str, str],
    entries: Sequence[Any],
    before: Tensor | None,
) -> TrainedWeight:
    codes = next((entry for entry in entries if isinstance(entry, Codes)), None)
    lowest = int(getattr(planned.methods.structure, "lowest_zero", 0))
    kinds = apart_from_adapters(kinds, packed.layout, packed.shape, entries)
    tensors = {suffix: tensor.clone() for suffix, tensor in packed.tensors().items()}
    bits = next((entry for entry in entries if isinstance(entry, Bits)), None)
    if bits is not None and kinds.get(CODES) == bits.name:
        return TrainedBits(
            planned.name, packed.layout, packed.shape, tensors, kinds, bits=bits, lowest_zero=lowest
        )
    return trained_weight(
        planned.name,
        packed.layout,
        packed.shape,
        tensors,
        kinds,
        lowest_zero=lowest,
        codes=codes,
        before=before,
    )


def set_all_units(weight: TrainedWeight, entries: Sequence[Any]) -> None:
    """Let the trainables say how far a step moves the numbers of a packed weight; a factor of zeros, whose own size says
    nothing, moves as the weight beside it is large."""
    for prefix, _, _ in low_rank_parts(weight.layout, weight.shape):
        sides = [f"{prefix}{side}_weight" for side in ("left", "right")]
        if not all(side in weight.trained for side in sides):
            continue
        left, right = (weight.trained[side].start for side in sides)
        rest = weight.layout.decode(weight.fixed, weight.shape, torch.float32) - left @ right
        for side, unit in zip(sides, units_of_factors(left, right, rest), strict=True):
            weight.trained[side] = replace(weight.trained[side], unit=unit)
    _set_units(weight.trained, entries)


def _set_units(trained: dict[str, Trained], entries: Sequence[Any]) -> None:
    """Let the trainables say how far a step moves their numbers, and which it holds."""
    by_name = {entry.name: entry for entry in entries}
    for suffix, one in trained.items():
        if one.kind in by_name:
            trained[suffix] = replace(one, unit=by_name[one.kind].units(one.start, one.unit))


def _dense(model: PreTrainedModel, stored: Tensor, name: str, entries: Sequence[Any]) -> Trained:
    kinds = [entry.name for entry in entries if (entry.name == "norms") == (stored.ndim == 1)]
    kind = next((one for one in kinds if one in MATRICES or one == "norms"), "values")
    made = {name: trained_tensor(name, kind, stored)}
    _set_units(made, entries)
    train_parameter(model, made[name])
    return made[name]


def _place(model: PreTrainedModel, planned: PlannedWeight) -> str | None:
    """The name of the packed linear that holds a weight; None where it is decoded, or an embedding."""
    view = planned.view
    place = view.module
    if view.expert is not None:
        experts: Any = model.get_submodule(view.module)
        leaf = view.parameter.rpartition(".")[2]
        if not isinstance(experts, PackedExperts):
            return None
        part = experts.rows[leaf][view.expert].index(view.rows)
        place = f"{view.module}.packed.{leaf}.{view.expert}.{part}"
    module = model.get_submodule(place)
    return place if isinstance(module, PackedLinear) and not module._holder else None


def _check_found(student: Student, entries: Sequence[Any], folder: Path) -> None:
    kinds = {one.kind for one in student.trained.values()}
    for entry in entries:
        if entry.name not in kinds:
            raise UserError(
                f"{folder} has nothing that heal could train as '{entry.name}': {entry.found_in}; leave it out of 'train'"
            )
