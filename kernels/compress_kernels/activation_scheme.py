"""Activation scheme: how the inputs of a layer are rounded, as data. Needs no torch, so that a recipe is read without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Strategy = Literal["tensor", "token", "group", "tensor_group", "attn_head"]
STRATEGIES: tuple[Strategy, ...] = ("tensor", "token", "group", "tensor_group", "attn_head")
SCALE_SUFFIX, ZERO_SUFFIX, GLOBAL_SUFFIX = "input_scale", "input_zero_point", "input_global_scale"

E4M3_MAX, E2M1_MAX = 448.0, 6.0


@dataclass(frozen=True)
class ActivationScheme:
    """Activation scheme: how the inputs of a layer are rounded, in the terms of compressed-tensors.

    Attributes:
        bits: of a value: 2 to 8 for integers, 8 (E4M3) or 4 (E2M1) for floats.
        type: ``"int"`` or ``"float"``.
        symmetric: the range is centred on zero; otherwise integers have a zero point.
        strategy: what shares a scale: the whole ``"tensor"``, one ``"token"``, a ``"group"`` of ``group_size`` features of a
            token, ``"tensor_group"`` (NVFP4: groups whose E4M3 scales are relative to a static scale of the tensor), or
            ``"attn_head"``, a head of a key-value cache.
        group_size: features in a group; ``None`` without groups.
        dynamic: scales are computed from the inputs while the layer runs; otherwise they are calibrated and stored. Those of
            ``"tensor_group"`` are dynamic within a stored global scale.
        scale_type: how dynamic scales of groups are stored: ``None`` (as computed, fp32) or ``"e8m0"`` (powers of two, MX).
        hadamard: rotate every block of this many features by Sylvester's Hadamard matrix before they are rounded (QuaRot's
            online rotation); the layer's weight is then stored as ``W H``. ``None`` does not.

    Raises:
        ValueError: a combination that no server computes.
    """

    bits: int = 8
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: Strategy = "token"
    group_size: int | None = None
    dynamic: bool = True
    scale_type: Literal["e8m0"] | None = None
    hadamard: int | None = None

    def __post_init__(self) -> None:
        if self.hadamard is not None:
            if self.hadamard < 2 or self.hadamard & (self.hadamard - 1):
                raise ValueError(f"inputs are rotated in blocks of a power of two, not {self.hadamard}")
            if not self.dynamic or self.strategy in ("tensor_group", "attn_head"):
                raise ValueError("rotated inputs have dynamic scales")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"there is no strategy {self.strategy!r}: known are {', '.join(STRATEGIES)}")
        if self.type == "int" and not 2 <= self.bits <= 8:
            raise ValueError(f"integer activations have 2 to 8 bits, not {self.bits}")
        if self.type == "float" and self.bits not in (4, 8):
            raise ValueError(f"float activations have 8 bits (E4M3) or 4 bits (E2M1), not {self.bits}")
        if self.type == "float" and not self.symmetric:
            raise ValueError("float activations are symmetric: they have no zero point")
        if self.grouped != (self.group_size is not None):
            raise ValueError(
                "'group_size' goes with the strategies 'group' and 'tensor_group', which need it"
            )
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"a group has at least one feature, not {self.group_size}")
        if not self.dynamic and self.strategy in ("token", "group"):
            raise ValueError(
                f"strategy '{self.strategy}' is dynamic: static scales go with strategy 'tensor'"
            )
        if self.dynamic and self.strategy == "attn_head":
            raise ValueError("strategy 'attn_head' has static scales")
        if self.strategy == "tensor_group" and (self.bits, self.type, self.group_size) != (4, "float", 16):
            raise ValueError("strategy 'tensor_group' is NVFP4: 4-bit floats in groups of 16")
        if self.scale_type is not None and (self.strategy, self.group_size, self.type) != (
            "group",
            32,
            "float",
        ):
            raise ValueError("scales of type e8m0 go with floats in groups of 32 (MXFP4, MXFP8)")

    @property
    def grouped(self) -> bool:
        """Whether a token has several scales."""
        return self.strategy in ("group", "tensor_group")

    @property
    def top(self) -> float:
        """The largest magnitude of a code: 127 for 8-bit integers, 448 for E4M3, 6 for E2M1."""
        if self.type == "int":
            return float((1 << (self.bits - 1)) - 1)
        return E4M3_MAX if self.bits == 8 else E2M1_MAX

    @property
    def stored(self) -> tuple[str, ...]:
        """Suffixes of the calibrated tensors, each of shape ``[1]``; :data:`compress_kernels.activations.STORED_DTYPES`."""
        if self.strategy == "tensor_group":
            return (GLOBAL_SUFFIX,)
        if self.dynamic:
            return ()
        return (SCALE_SUFFIX,) if self.symmetric else (SCALE_SUFFIX, ZERO_SUFFIX)

    @property
    def label(self) -> str:
        """The scheme in a few words: ``int8 per token``."""
        kind = f"int{self.bits}" if self.type == "int" else {8: "fp8", 4: "fp4"}[self.bits]
        rotated = "" if self.hadamard is None else f", rotated in blocks of {self.hadamard}"
        if self.scale_type == "e8m0":
            return f"mx{kind} per group of 32{rotated}"
        if self.strategy == "tensor_group":
            return "nvfp4 per group of 16"
        where = f"group of {self.group_size}" if self.grouped else self.strategy.removeprefix("attn_")
        notes = ("" if self.symmetric else ", asymmetric") + ("" if self.dynamic else ", static")
        return f"{kind} per {where}{notes}{rotated}"

    @property
    def unrotated(self) -> ActivationScheme:
        """The same for inputs that are rotated already."""
        return replace(self, hadamard=None)

    def to_json(self) -> dict[str, Any]:
        """Plain data for :meth:`from_json`."""
        data = asdict(self)
        return data if self.hadamard is not None else {k: v for k, v in data.items() if k != "hadamard"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ActivationScheme:
        """The inverse of :meth:`to_json`."""
        return cls(**data)


INT8_PER_TOKEN = ActivationScheme()
"""What the ``int8_matmul`` operator does by itself."""
