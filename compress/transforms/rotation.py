"""Rotations: the residual stream and the values of each attention layer in other orthonormal bases.

The function of the model stays (QuaRot, arXiv:2404.00456; SpinQuant, arXiv:2405.16406; SliceGPT, arXiv:2401.15024, theorem 1):
scales of norms go into the layers that read them, every writer ``W`` of a space becomes ``Qᵀ W``, every reader ``W Q``.
Outliers of single features are spread over all, so that weights and inputs lose less when they are rounded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from compress.errors import UserError
from compress.models.conversion import Piece
from compress.models.skeleton import Skeleton
from compress.system.units import in_bytes
from compress.transforms.orthogonal import Orthogonal, random_hadamard
from compress.transforms.tracing import Rotatable, Spaces, find_spaces


@dataclass(frozen=True)
class Rotation:
    """Rotation: the settings of the transform ``rotation``.

    Attributes:
        residual: the rotation of the residual stream (SpinQuant's R1): ``hadamard`` with random signs, ``learned`` from there
            on calibration data, or ``none``.
        values: rotate the values of each attention layer by head (R2), by Hadamard matrices, and any other features that one
            linear layer alone writes and others read.
        online: rotate the inputs of the other layers with rounded inputs while the model runs (R4), which are those of an FFN's
            last layer as a rule. The checkpoint is then in our own form: other programs would leave the rotation out.
        block: features in a block of the rotations, for formats whose groups have their own scales; null rotates all together.
        steps: of learning.
        rate: its first learning rate, which falls to zero.
    """

    residual: Literal["hadamard", "learned", "none"] = "hadamard"
    values: bool = True
    online: bool = False
    block: int | None = None
    steps: int = 60
    rate: float = 1.5

    def __post_init__(self) -> None:
        if self.residual == "none" and not self.values:
            raise ValueError("'residual: none' and 'values: false' leave nothing to rotate")
        if self.block is not None and self.block < 2:
            raise ValueError("a block has at least 2 features")


@dataclass(frozen=True, eq=False)
class Rotated:
    """A space and the matrix that it is rotated by."""

    space: Rotatable
    matrix: Orthogonal


@dataclass(frozen=True)
class Learned:
    """A learned matrix: the hash of its values, and the loss in the first and the last sixth of the steps, in nats by token."""

    digest: str
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class RotationPlan:
    """What is rotated in a model, by what.

    Attributes:
        residual: the residual stream; ``None`` where it stays.
        inner: spaces inside of blocks.
        seed: of the random signs.
        untied: the head's parameter, where it is written apart from the embeddings → the embeddings'.
        learned: what is known of the residual stream's matrix, where it was learned.
    """

    residual: Rotated | None
    inner: tuple[Rotated, ...]
    seed: int
    untied: Mapping[str, str] = field(default_factory=dict)
    learned: Learned | None = None

    @property
    def spaces(self) -> tuple[Rotated, ...]:
        """All that is rotated."""
        return (*((self.residual,) if self.residual else ()), *self.inner)


def plan_rotation(
    skeleton: Skeleton, settings: Rotation, seed: int, spaces: Spaces | None = None
) -> RotationPlan:
    """Choose the matrices; no tensor is read.

    Args:
        skeleton: the model.
        settings: what to rotate.
        seed: of the random signs.
        spaces: of the model; found here if ``None``.

    Raises:
        UserError: the model has no space that can be rotated exactly, or a block does not divide its features.
    """
    spaces = find_spaces(skeleton) if spaces is None else spaces
    model = type(skeleton.model).__name__
    residual = None
    if settings.residual != "none":
        if spaces.residual is None:
            raise UserError(
                f"transforms: rotation: the residual stream of {model} cannot be rotated exactly: {spaces.refusal}; leave the "
                "transform out, or give it 'residual: none' to rotate values alone"
            )
        residual = Rotated(spaces.residual, _matrix(spaces.residual, settings, seed))
    inner = (
        tuple(Rotated(space, _matrix(space, settings, seed)) for space in spaces.inner)
        if settings.values
        else ()
    )
    if residual is None and not inner:
        raise UserError(
            f"transforms: rotation: {model} has no values that one linear layer writes and another reads: leave it out"
        )
    untied = {} if residual is None else _untied(skeleton, residual.space)
    return RotationPlan(residual, inner, seed, untied)


def _matrix(space: Rotatable, settings: Rotation, seed: int) -> Orthogonal:
    first = space.writers[0].parameter
    # Generators on the CPU take notice of 32 bits alone.
    digest = hashlib.sha256(f"{seed} {first}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    try:
        return random_hadamard(space.block, generator, block=settings.block, keeps_mean=space.keeps_mean)
    except ValueError as error:
        raise UserError(f"transforms: rotation.block: {error} of {first}") from error


def _untied(skeleton: Skeleton, space: Rotatable) -> dict[str, str]:
    """The tied head, where it reads the embeddings' parameter behind a norm's scale, which only one of both can take up.

    Raises:
        UserError: another parameter is tied so.
    """
    written = {one.parameter for one in space.writers}
    both = {one.parameter for one in space.readers if one.parameter in written and one.norm is not None}
    head = skeleton.model.get_output_embeddings()
    names = {
        name
        for name, parameter in skeleton.model.named_parameters(remove_duplicate=False)
        if head is not None and parameter is getattr(head, "weight", None)
    }
    result = {
        target: origin for target, origin in skeleton.tied.items() if origin in both and target in names
    }
    if lost := both - set(result.values()):
        raise UserError(
            f"transforms: rotation: {min(lost)} both writes and reads the residual stream and is not tied to the head: leave "
            "the transform out"
        )
    return result


def record_of(plan: RotationPlan) -> dict[str, Any]:
    """What was rotated, as plain data."""
    inner = sorted({one.matrix.label for one in plan.inner})
    return {
        **({"residual": plan.residual.matrix.label} if plan.residual else {}),
        **({"inner": inner, "spaces": len(plan.inner)} if inner else {}),
        **({"untied": sorted(plan.untied)} if plan.untied else {}),
        **({"learned": plan.learned.digest} if plan.learned else {}),
    }


def notes_of(skeleton: Skeleton, plan: RotationPlan) -> tuple[str, ...]:
    """Sentences on what is rotated, for people."""
    notes = []
    if plan.residual is not None:
        notes.append(
            f"The residual stream of {plan.residual.space.size} features is rotated: {plan.residual.matrix.label}."
        )
    if plan.learned is not None:
        notes.append(
            f"Learning it took the divergence with rounded inputs alone from {plan.learned.before:.3g} to "
            f"{plan.learned.after:.3g} nats by token."
        )
    if plan.inner:
        labels = ", ".join(sorted({one.matrix.label for one in plan.inner}))
        notes.append(f"Values are rotated by head in {len(plan.inner)} layers: {labels}.")
    for target, origin in plan.untied.items():
        if head_on_disk(skeleton, target, origin) not in skeleton.source.headers:
            size = skeleton.source.headers[alone_on_disk(skeleton, origin).disk].nbytes
            notes.append(
                f"{target} takes up the last norm and is written apart from the embeddings: {in_bytes(size)} more."
            )
    return tuple(notes)


def alone_on_disk(skeleton: Skeleton, name: str) -> Piece:
    """The one disk tensor that a parameter is.

    Raises:
        UserError: it is put together from several, or its place is not known.
    """
    pieces = skeleton.pieces.get(name, ())
    if len(pieces) != 1:
        raise UserError(
            f"transforms: rotation: {name} is stored in a way that is not rotated here: leave the transform out"
        )
    return pieces[0]


def head_on_disk(skeleton: Skeleton, target: str, origin: str) -> str:
    """The name on disk of a head that was tied: that of its copy there, if it has one."""
    return next(iter(skeleton.twins(origin)), target)
