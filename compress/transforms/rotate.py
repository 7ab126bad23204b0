"""The edits of disk tensors by which a model is rotated: what is made of a rotation's plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from compress.errors import UserError
from compress.models.conversion import Piece
from compress.models.skeleton import Skeleton
from compress.transforms.rotated_source import (
    Divide,
    Fill,
    Placed,
    Rotate,
    RotatedSource,
    Scale,
    TensorEdit,
    rotated_source,
)
from compress.transforms.rotation import Rotated, RotationPlan, alone_on_disk, head_on_disk, record_of
from compress.transforms.tracing import Norm

_SMALLEST_SCALE = 1e-4
"""A norm's scale, relative to its largest, by which a shift cannot be divided without a loss."""


def rotate(skeleton: Skeleton, plan: RotationPlan, *, forgotten: str = "") -> RotatedSource:
    """The skeleton's source with the plan's spaces rotated; only norms are read here.

    Args:
        skeleton: the model.
        plan: from :func:`plan_rotation`, whose residual matrix may have been learned since.
        forgotten: the digest of a learned matrix that is not known any more: of what it changes only the shapes are known.

    Raises:
        UserError: a parameter whose place on disk is not known, or a norm's shift that cannot be divided by its scale.
    """
    edits: dict[str, list[TensorEdit]] = {}
    done: set[tuple[str, int]] = set()
    for rotated in plan.spaces:
        for name, dim, some in _edits_of(skeleton, plan, rotated):
            if (name, dim) not in done or dim < 0:
                _place(skeleton, plan, edits, name, some)
            done.add((name, dim))
    copies = {
        head_on_disk(skeleton, target, origin): alone_on_disk(skeleton, origin).disk
        for target, origin in plan.untied.items()
    }
    record = {"seed": plan.seed, **record_of(plan), **({"learned": forgotten} if forgotten else {})}
    unread = frozenset(edits) if forgotten else frozenset()
    readers = frozenset(one.parameter for rotated in plan.spaces for one in rotated.space.readers)
    return rotated_source(
        skeleton.source, edits, copies=copies, record=record, readers=readers, unread=unread
    )


def _edits_of(
    skeleton: Skeleton, plan: RotationPlan, rotated: Rotated
) -> Iterator[tuple[str, int, list[TensorEdit]]]:
    """Parameter, dimension (−1 for a norm's vector) and edits of one space."""
    space, matrix = rotated.space, rotated.matrix
    heads = {origin: target for target, origin in plan.untied.items()}
    for writer in space.writers:
        yield writer.parameter, writer.dim, [Rotate(writer.dim, writer.start, writer.stop, matrix)]
    norms: dict[Norm, Tensor | None] = {}
    for reader in space.readers:
        size = skeleton.model.get_parameter(reader.parameter).shape[reader.dim]
        some: list[TensorEdit] = [Rotate(reader.dim, 0, size, matrix)]
        if reader.norm is not None:
            if reader.norm not in norms:
                norms[reader.norm] = _scale_of(skeleton, reader.norm)
            scale = norms[reader.norm]
            some = some if scale is None else [Scale(reader.dim, scale), *some]
        behind_norm = reader.norm is not None and reader.parameter in heads
        yield heads[reader.parameter] if behind_norm else reader.parameter, reader.dim, some
    for norm, scale in norms.items():
        if norm.weight:
            yield norm.weight, -1, [Fill(1 - norm.offset)]
        if norm.bias:
            divided: list[TensorEdit] = [] if scale is None else [Divide(scale)]
            yield norm.bias, -1, [*divided, Rotate(0, 0, space.size, matrix)]


def _scale_of(skeleton: Skeleton, norm: Norm) -> Tensor | None:
    """The vector that a norm multiplies by, fp32; ``None`` for a norm with a shift alone.

    Raises:
        UserError: the norm's shift cannot be divided by it.
    """
    if not norm.weight:
        return None
    scale = _vector(skeleton, norm.weight) + norm.offset
    if norm.bias:
        shift = _vector(skeleton, norm.bias)
        small = scale.abs() < _SMALLEST_SCALE * scale.abs().max()
        if bool((small & (shift != 0)).any()):
            raise UserError(
                f"transforms: rotation: {norm.weight} is nearly zero for features that {norm.bias} shifts, which no rotation "
                "keeps: leave the transform out"
            )
    return scale


def _vector(skeleton: Skeleton, name: str) -> Tensor:
    piece = alone_on_disk(skeleton, name)
    return piece.of_disk(skeleton.source.read(piece.disk)).float()


def _place(
    skeleton: Skeleton,
    plan: RotationPlan,
    edits: dict[str, list[TensorEdit]],
    name: str,
    some: Sequence[TensorEdit],
) -> None:
    """Add the edits of a parameter to those of the disk tensors that it is made of."""
    if name in plan.untied:
        origin = plan.untied[name]
        edits.setdefault(head_on_disk(skeleton, name, origin), []).extend(
            Placed(alone_on_disk(skeleton, origin), edit) for edit in some
        )
        return
    pieces = skeleton.pieces.get(name, ())
    if not pieces:
        raise UserError(
            f"transforms: rotation: {name} is stored in a way that is not rotated here: leave the transform out"
        )
    twins = () if name in plan.untied.values() else skeleton.twins(name)
    for piece in pieces:
        for edit in some:
            if (placed := _within(piece, edit, name)) is not None:
                for disk in (piece.disk, *twins):
                    edits.setdefault(disk, []).append(Placed(piece, placed))


def _within(piece: Piece, edit: TensorEdit, name: str) -> TensorEdit | None:
    """An edit of a parameter as one of a part of it; ``None`` where it does not touch the part.

    Raises:
        UserError: a rotation runs over features that lie in several tensors.
    """
    if isinstance(edit, Scale):
        return Scale(edit.dim, edit.vector[slice(*piece.box[edit.dim])])
    if not isinstance(edit, Rotate):
        return edit
    first, last = piece.box[edit.dim]
    start, stop = max(first, edit.start), min(last, edit.stop)
    if start >= stop:
        return None
    width = edit.rotation.width
    if (start - edit.start) % width or (stop - edit.start) % width or piece.dims[edit.dim] is None:
        raise UserError(
            f"transforms: rotation: the features of {name} lie in several tensors on disk, which is not rotated here"
        )
    return Rotate(edit.dim, start - first, stop - first, edit.rotation)
