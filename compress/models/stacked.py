"""Matrices stacked in one parameter of any module: 3-D, or laid below each other in two dimensions (experts, heads).

Which way round they lie is told by the hidden size: the first parameter of a module reads hidden states, the last of several
writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.models.experts import runs_experts

NARROW = 16
"""A parameter with a side as short as this is a table of constants (states, taps of a convolution), no matrix."""

_WORTH = 0.05
"""The least share of the matrix parameters of all blocks for which such parameters are taken apart: below it a model stays in a
form that knows no parts of parameters."""


@dataclass(frozen=True)
class Stack:
    """One parameter of several matrices.

    Attributes:
        module: the name of the module that holds it.
        leaf: its name there.
        count: how many matrices.
        rows, columns: of one, as it lies.
        transposed: a matrix lies as ``[in, out]``.
        flattened: the parameter has two dimensions, the matrices below each other.
    """

    module: str
    leaf: str
    count: int
    rows: int
    columns: int
    transposed: bool
    flattened: bool

    @property
    def numel(self) -> int:
        """Elements of all matrices together."""
        return self.count * self.rows * self.columns


def is_matrix(module: nn.Module, leaf: str, shape: Sequence[int]) -> bool:
    """Whether a parameter is what products are computed with: no vector, bias, kernel of a convolution or narrow table."""
    if len(shape) < 2 or leaf.endswith("bias") or isinstance(module, nn.modules.conv._ConvNd):
        return False
    return min(shape[-2:]) > NARROW


def find_stacks(model: PreTrainedModel, blocks: Sequence[str]) -> dict[str, list[Stack]]:
    """Module → its stacks in the order of its parameters; nothing where together they are a small part of the blocks."""
    hidden = _hidden_size(model)
    found: dict[str, list[Stack]] = {}
    total = 0
    for block in blocks:
        for name, module in model.get_submodule(block).named_modules(prefix=block):
            parameters = dict(module.named_parameters(recurse=False))
            matrices = {leaf: p for leaf, p in parameters.items() if is_matrix(module, leaf, p.shape)}
            total += sum(parameter.numel() for parameter in matrices.values())
            if isinstance(module, nn.Linear | nn.Embedding | Conv1D) or runs_experts(module):
                continue
            shapes = dict(_shapes(model, name, {leaf: tuple(p.shape) for leaf, p in matrices.items()}))
            if shapes:
                found[name] = list(_stacks(name, shapes, hidden))
    taken = sum(stack.numel for stacks in found.values() for stack in stacks)
    return found if taken > _WORTH * total else {}


def _shapes(
    model: PreTrainedModel, name: str, shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, int, int, bool]]]:
    """Leaf → how many matrices, their sides, and whether they lie below each other in two dimensions."""
    for leaf, shape in shapes.items():
        if len(shape) == 3:
            yield leaf, (*shape, False)
        elif len(shape) == 2 and (count := _experts_around(model, name)):
            rows, rest = divmod(shape[0], count)
            if rest == 0 and rows > NARROW:
                yield leaf, (count, rows, shape[1], True)


def _stacks(name: str, shapes: dict[str, tuple[int, int, int, bool]], hidden: int) -> Iterator[Stack]:
    last = list(shapes)[-1] if len(shapes) > 1 else None
    for leaf, (count, rows, columns, flattened) in shapes.items():
        if len(shapes) == 1:
            transposed = False
        elif leaf == last:
            transposed = rows != hidden and columns == hidden
        else:
            transposed = columns != hidden and rows == hidden
        yield Stack(name, leaf, count, rows, columns, transposed, flattened)


def _experts_around(model: PreTrainedModel, name: str) -> int:
    """How many experts the module, or the nearest one around it that says so, has; 0 where none says so."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = model.get_submodule(".".join(parts[:length]))
        for key, value in vars(module).items():
            if "num_experts" in key and "_per_" not in key and isinstance(value, int) and value > 1:
                return value
    return 0


def _hidden_size(model: PreTrainedModel) -> int:
    size = getattr(model.config.get_text_config(), "hidden_size", None)
    return size if isinstance(size, int) else int(model.get_input_embeddings().weight.shape[-1])


def find_routers(model: PreTrainedModel, blocks: Sequence[str], owners: dict[str, int]) -> set[str]:
    """The linear modules that choose among experts: they have one output for each, and stand beside the experts.

    Args:
        model: on meta.
        blocks: the names of its decoder blocks.
        owners: module with experts → how many it has.
    """
    routers: set[str] = set()
    for owner, count in owners.items():
        block = next(block for block in blocks if owner.startswith(f"{block}."))
        around = owner
        while around != block:
            around = around.rpartition(".")[0]
            beside = _linears_beside(model, around, owner, block, count)
            routers.update(beside)
            if beside:
                break
    return routers


def _linears_beside(model: PreTrainedModel, around: str, owner: str, block: str, count: int) -> set[str]:
    """Linears of ``count`` outputs under ``around``, outside of the experts; of a block's own children only those with no other
    linear (an attention has several)."""
    result: set[str] = set()
    for child, module in model.get_submodule(around).named_children():
        place = f"{around}.{child}"
        if owner == place or owner.startswith(f"{place}."):
            continue
        linears = {
            name: one for name, one in module.named_modules(prefix=place) if isinstance(one, nn.Linear)
        }
        alone = around != block or len(linears) == 1
        result |= {name for name, one in linears.items() if alone and one.weight.shape[0] == count}
    return result
