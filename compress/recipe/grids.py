"""The sections of a recipe that say which grid a weight is rounded to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from compress_kernels.value_types import BLOCK_TYPES, FLOAT_TYPES, TABLE_BITS
from pydantic import BeforeValidator, Field, model_validator

from compress.recipe.section import Method, Section, as_methods

GGUFType = Literal[
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"
]  # fmt: skip
FloatFormat = Literal["fp8", "mxfp8", "mxfp4", "nvfp4"]


class Quantize(Section):
    """A quantization grid.

    ``group_size: auto`` is the largest of 128, 64 and 32 that divides the inputs (:mod:`compress.planning.group_sizes`).
    ``type: int`` is evenly spaced (:class:`compress.structures.grids.integer.IntegerGrid` explains the keys); ``type: nf4``
    has the sixteen values of NF4 times a scale by group, 64 unless given; ``shift`` (2 to 5 bits, signed powers of two, no
    zero) and ``rf8`` (an 8-bit float) have tables, too (:class:`compress.structures.grids.value_table.TableGrid`); ``fp8``,
    ``mxfp8``, ``mxfp4``, ``nvfp4`` are small floats (:class:`compress.structures.grids.floats.FloatGrid`), which fix the
    bits and, fp8 apart, the groups: fp8 has a scale by ``channel``, ``tensor`` or ``block`` (128 x 128). The others are the
    types of GGUF (:data:`compress_kernels.value_types.BLOCK_TYPES`), which fix all other keys. Where a row is no multiple
    of such a type's block, ``fallback`` takes the type that llama.cpp takes there; ``mix`` gives single tensors more bits
    as llama.cpp's files ``_S``, ``_M`` and ``_L`` of the type do. ``zero_point: float`` stores a bias in the place of a
    whole zero point, as MLX does (:class:`compress.structures.grids.affine.AffineGrid`).

    ``scales: minmax`` takes each scale from the extremes, ``mse`` searches it, ``joint`` searches scale and zero point together
    (``type: int`` alone); for small floats the default is ``mse``.
    """

    type: Literal["int", "nf4", "shift", "rf8"] | FloatFormat | GGUFType = "int"
    bits: int = Field(ge=2, le=8)
    group_size: Annotated[int, Field(ge=1)] | Literal["channel", "tensor", "block", "auto"] = 128
    symmetric: bool = True
    scales: Literal["minmax", "mse", "joint"] = "minmax"
    zero_point: Literal["integer", "float"] = "integer"
    fallback: bool = False
    mix: Literal["s", "m", "l"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _activations_are_a_key_of_the_step(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "activations" not in data:
            return data
        if data["activations"] is not None:
            raise ValueError(
                "'activations' is a key of the step, beside 'quantize': activations: {bits: 8, strategy: token}"
            )
        return {
            key: value for key, value in data.items() if key != "activations"
        }  # reports of earlier versions

    @model_validator(mode="before")
    @classmethod
    def _keys_of_gguf(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("type") not in get_args(GGUFType):
            return data
        kind = BLOCK_TYPES[data["type"]]
        fixed = {"bits": kind.top.bit_length(), "group_size": kind.group, "symmetric": not kind.minimum}
        for key, value in (fixed | {"scales": "minmax"}).items():
            if data.get(key, value) != value:
                raise ValueError(f"type {data['type']} takes 'fallback' and 'mix' alone, not '{key}'")
        return {**data, **fixed}

    @model_validator(mode="before")
    @classmethod
    def _keys_of_floats(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("type") not in FLOAT_TYPES:
            return data
        kind = FLOAT_TYPES[data["type"]]
        fixed: dict[str, Any] = {"bits": kind.bits, "symmetric": True}
        if kind.group is not None:
            fixed["group_size"] = kind.group
        for key, value in fixed.items():
            if data.get(key, value) != value:
                raise ValueError(f"type {data['type']} has '{key}: {str(value).lower()}' and no other")
        groups = ("channel", "tensor", "block")
        if kind.group is None and data.get("group_size", "channel") not in groups:
            raise ValueError(
                f"type {data['type']} has 'group_size' {', '.join(groups)}, and no groups of columns"
            )
        return {"group_size": "channel", "scales": "mse", **data, **fixed}

    @model_validator(mode="after")
    def _blocks_of_fp8(self) -> Quantize:
        if self.group_size == "block" and self.type != "fp8":
            raise ValueError("'group_size: block' goes with type fp8")
        return self

    @model_validator(mode="before")
    @classmethod
    def _group_of_nf4(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("type") == "nf4":
            return {"bits": 4, "group_size": 64, **data}
        return data

    @model_validator(mode="before")
    @classmethod
    def _bits_of_tables(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("type") in TABLE_BITS:
            bits = {"shift": 4, "rf8": 8}[data["type"]]
            return {"bits": bits, "scales": "mse", **data}
        return data

    @model_validator(mode="after")
    def _tables_alone(self) -> Quantize:
        if self.type in TABLE_BITS:
            known = TABLE_BITS[self.type]
            if self.bits not in known or not self.symmetric or self.scales != "mse":
                bits = " or ".join(map(str, known))
                raise ValueError(f"type {self.type} has {bits} bits and takes 'bits' and 'group_size' alone")
            if self.group_size in ("channel", "tensor"):
                raise ValueError(
                    f"type {self.type} has groups of columns: give 'group_size' a number or 'auto'"
                )
        return self

    @model_validator(mode="after")
    def _nf4_alone(self) -> Quantize:
        if self.type == "nf4":
            others = {"symmetric": self.symmetric, "scales": self.scales}
            if self.bits != 4 or others != {"symmetric": True, "scales": "minmax"}:
                raise ValueError("type nf4 has 4 bits and takes 'group_size' alone")
            if self.group_size != "auto" and self.group_size not in (
                32,
                64,
                128,
                256,
                512,
                1024,
                2048,
                4096,
            ):
                raise ValueError("a group of type nf4 is a power of two from 32 to 4096")
        if self.zero_point == "float" and (self.symmetric or self.type != "int"):
            raise ValueError("'zero_point: float' goes with 'type: int' and 'symmetric: false'")
        if self.scales == "joint" and self.type != "int":
            raise ValueError("'scales: joint' goes with 'type: int'")
        if (self.fallback or self.mix) and self.type not in get_args(GGUFType):
            raise ValueError("'fallback' and 'mix' go with the types of GGUF")
        return self


class OutsideGrid(Quantize):
    """The grid of the token embeddings or of the output head: ``{bits: 8}``, or the number of bits alone.

    As :class:`Quantize`, with ``group_size: auto`` and searched scales unless given otherwise. A weight that both share (tied)
    takes the head's grid, or the embeddings' where there is no other. What the output head multiplies by is solved with
    ``solver`` on the head's inputs; without ``solver``, by GPTQ where the rest of the recipe looks at data, else, as all
    embeddings are, rounded to nearest: each row by itself, whatever its token's frequency.
    """

    solver: Annotated[tuple[Method, ...], BeforeValidator(as_methods)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if isinstance(data, int) and not isinstance(data, bool):
            data = {"bits": data}
        if not isinstance(data, Mapping):
            return data
        usual = {"int": {"group_size": "auto", "scales": "mse"}}
        usual |= {name: {"group_size": "auto"} for name in ("nf4", *TABLE_BITS)}
        return {**usual.get(str(data.get("type", "int")), {}), **data}
