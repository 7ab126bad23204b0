"""The sections of a recipe: one pydantic model for each, extra keys refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from compress_kernels.activation_scheme import ActivationScheme
from compress_kernels.value_types import BLOCK_TYPES, FLOAT_TYPES, TABLE_BITS
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A section of a recipe: frozen, and a key that it does not have is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


GGUFType = Literal[
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"
]  # fmt: skip
FloatFormat = Literal["fp8", "mxfp8", "mxfp4", "nvfp4"]


class Calibrate(Section):
    """Where the calibration tokens come from: a file, a hub dataset or ``embedded``.

    Every window begins with the BOS token where ``bos`` says so; ``null`` does as the tokenizer does by itself. Gradients are
    those of next tokens that are drawn from the model (``labels: model``, the Fisher information) or are the text's
    (``labels: data``, the observed Fisher information).
    """

    data: str = "embedded"
    samples: int = Field(128, ge=1, le=1_000_000)
    length: int = Field(2048, ge=2, le=1 << 24)
    bos: bool | None = None
    labels: Literal["model", "data"] = "model"


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


class Method(Section):
    """A solver or a score by name, with its own options."""

    name: str
    options: Mapping[str, Any] = Field(default_factory=dict)


def as_method(value: Any) -> Any:
    """``gptq`` or ``{name: gptq, damping: 0.02}`` → name and options."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and "name" in value and "options" not in value:
        return {"name": value["name"], "options": {k: v for k, v in value.items() if k != "name"}}
    return value


def as_methods(value: Any) -> Any:
    """One method or a list of them → a list for :class:`Method`."""
    return [as_method(method) for method in value] if isinstance(value, list | tuple) else [as_method(value)]


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


class Prune(Section):
    """Pruning of elements: a share of them (``sparsity``), or all but n of every m (``pattern: "2:4"``).

    ``scope`` says where elements compete: within a row, a layer, or with ``global`` all layers of the step;
    ``block: [rows, columns]`` drops whole blocks of a layer. ``allocate`` says how the share is spread over the decoder blocks.
    """

    sparsity: float | None = Field(None, gt=0, lt=1)
    pattern: str | None = Field(None, pattern=r"^[1-9]\d*:[1-9]\d*$")
    scope: Literal["row", "layer", "global"] = "row"
    block: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    allocate: Literal["uniform", "owl", "fisher"] = "uniform"

    @model_validator(mode="after")
    def _one_of_both(self) -> Prune:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give either 'sparsity' or 'pattern'")
        if self.pattern is not None:
            n, m = (int(part) for part in self.pattern.split(":"))
            if n >= m:
                raise ValueError(f"pattern {self.pattern} keeps n of every m and needs n < m")
            if self.scope != "row" or self.block is not None or self.allocate != "uniform":
                raise ValueError("'scope', 'block' and 'allocate' go with 'sparsity', not with 'pattern'")
        if self.block is not None and (self.scope == "global" or self.allocate != "uniform"):
            raise ValueError("blocks are chosen over a layer, with one share for all")
        if self.scope == "global" and self.allocate != "uniform":
            raise ValueError("'scope: global' already says how a share is spread: leave 'allocate' out")
        return self


class LowRank(Section):
    """Low-rank factors in the place of a weight, or in a sum with what ``quantize`` or ``prune`` makes of its residual.

    ``ratio`` is the share of the weight's parameters that the factors take; ``rank`` gives their rank instead. ``columns``
    keeps a share of the inputs as whole columns within the ratio. ``bits`` and ``group_size`` put the factors on an integer
    grid. ``allocate`` says how the ratio is spread over the weights; ``split`` spreads each weight's ratio over its parts
    only. With ``share``, weights that read the same inputs (q/k/v, gate/up) share an input factor where that loses less.
    """

    ratio: float | None = Field(None, gt=0, le=1)
    rank: int | None = Field(None, ge=1)
    columns: float | None = Field(None, gt=0, lt=1)
    bits: int | None = Field(None, ge=2, le=8)
    group_size: Annotated[int, Field(ge=1)] | Literal["channel", "tensor"] = "channel"
    allocate: Literal["uniform", "split", "energy", "truncation", "fisher"] = "uniform"
    share: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> LowRank:
        if (self.ratio is None) == (self.rank is None):
            raise ValueError("give either 'ratio' or 'rank'")
        if self.rank is not None and self.allocate != "uniform":
            raise ValueError("'allocate' spreads a 'ratio', not a 'rank'")
        if self.share and self.allocate == "uniform":
            raise ValueError("'share' goes with an 'allocate' other than 'uniform'")
        if self.columns is not None and self.ratio is None:
            raise ValueError("'columns' shares a 'ratio' with the factors")
        return self


class DepthPruning(Section):
    """Depth pruning: how many decoder blocks are removed, chosen by the ``loss`` without them or by the ``angle`` between their
    inputs and outputs; or the list of their numbers, from 0."""

    blocks: (
        Annotated[int, Field(ge=1)] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    )
    by: Literal["loss", "angle"] = "loss"


class WidthPruning(Section):
    """Width pruning: the share of FFN neurons, and of groups of query heads with their key and value head, that every decoder
    block keeps; the weights that read them are fitted anew.

    With ``merge`` (a cosine) neurons whose rows of weights are at least so alike go first: the fit puts what they said onto
    their twins (:mod:`compress.prune.twins`). With ``allocate: fisher`` blocks keep different numbers of neurons, the same
    number in total, chosen by the gradients of the model's loss. ``counts`` says of single blocks how many neurons stay; the
    others keep all, and ``neurons`` is left out. No transformers configuration describes blocks of different widths: the result
    is loaded after ``import compress``.
    """

    neurons: float | None = Field(None, gt=0, le=1)
    groups: float | None = Field(None, gt=0, le=1)
    counts: Mapping[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] | None = Field(
        None, min_length=1
    )
    merge: float | None = Field(None, gt=0, le=1)
    allocate: Literal["uniform", "fisher"] = "uniform"

    @model_validator(mode="after")
    def _one_at_least(self) -> WidthPruning:
        if self.counts is not None and self.neurons is not None:
            raise ValueError("give either 'neurons' or 'counts'")
        if self.neurons is None and self.groups is None and self.counts is None:
            raise ValueError("give 'neurons', 'groups' or both, or 'counts'")
        if self.merge is not None and self.neurons is None:
            raise ValueError("'merge' looks at 'neurons': give their share")
        if self.allocate != "uniform" and self.neurons is None:
            raise ValueError("'allocate' spreads 'neurons' over the blocks: give their share")
        return self


class Activations(Section):
    """Activation quantization: how the inputs of the step's layers are rounded while the model runs, in the terms of
    compressed-tensors (:class:`compress_kernels.activation_scheme.ActivationScheme` explains each key).

    Without ``strategy`` dynamic scales go by token and static ones by tensor. ``observer`` chooses the range of static scales
    from the calibration inputs: ``minmax``, ``percentile`` or ``mse``.
    """

    bits: int = Field(8, ge=2, le=8)
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: Literal["tensor", "token", "group", "tensor_group"] | None = None
    group_size: Annotated[int, Field(ge=1)] | None = None
    dynamic: bool = True
    scale_type: Literal["e8m0"] | None = None
    observer: Annotated[Method, BeforeValidator(as_method)] = Method(name="minmax")

    @model_validator(mode="after")
    def _a_scheme_that_servers_compute(self) -> Activations:
        self.scheme()
        return self

    def scheme(self) -> ActivationScheme:
        """The scheme that the keys describe."""
        strategy = self.strategy or ("token" if self.dynamic else "tensor")
        return ActivationScheme(
            self.bits, self.type, self.symmetric, strategy, self.group_size, self.dynamic, self.scale_type
        )


class KVCache(Section):
    """Key-value cache quantization: keys (after their position is rotated in) and values are stored in 8 bits.

    The scales are static, one for the ``tensor`` of a layer or one for each of its heads (``attn_head``), chosen from the
    calibration text by ``observer``. ``type: float`` is E4M3.
    """

    bits: Literal[8] = 8
    type: Literal["int", "float"] = "float"
    symmetric: Literal[True] = True
    strategy: Literal["tensor", "attn_head"] = "tensor"
    dynamic: Literal[False] = False
    observer: Annotated[Method, BeforeValidator(as_method)] = Method(name="minmax")

    def scheme(self) -> ActivationScheme:
        """The scheme that the keys describe."""
        return ActivationScheme(self.bits, self.type, strategy=self.strategy, dynamic=False)


_LAYERS = re.compile(r"(-?\d{1,6})(?:-(-?\d{1,6}))?")
"""A decoder block, or the first and the last of several."""


def as_patterns(value: Any) -> Any:
    """Targets that are written as one string, with commas between; a regular expression stands alone."""
    if not isinstance(value, str):
        return value
    return [value] if value.startswith("re:") else [part.strip() for part in value.split(",") if part.strip()]


def as_layers(value: Any) -> Any:
    """Decoder blocks as text: ``0-3,-1``, ``7`` or ``[0, -1]``.

    Raises:
        ValueError: it is none of these.
    """
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    texts = [str(part).strip() for part in parts]
    if isinstance(value, bool | float) or not texts or not all(map(_LAYERS.fullmatch, texts)):
        raise ValueError("decoder blocks are numbers and ranges with commas between, such as 0-3,-1")
    return ",".join(texts)


class Step(Section):
    """A step: what is done to the weights that ``targets`` names and ``ignore`` does not.

    Targets are ``linear`` (every linear layer of the decoder blocks), ``experts``, ``embeddings``, ``head`` (a weight
    that it shares with the embeddings included), names or the ends of names (``q_proj``, ``mlp.up_proj``), globs
    (``*.mlp.*``), or ``re:`` and a regular expression anchored at the start. ``layers: 0-3,-1`` takes the targets in these
    decoder blocks alone, ``-1`` being the last.

    Without ``score`` the last solver's default score is taken. With ``true_input_target`` the solvers
    approximate the weight that answers the dense layer's outputs on the compressed model's inputs, in the place of the
    dense weight; experts, whose tokens differ between the two models, are solved without it.
    ``activations`` rounds the inputs of these layers, in calibration and wherever the result is run.
    """

    targets: Annotated[tuple[str, ...], BeforeValidator(as_patterns)] = ("linear", "experts")
    ignore: Annotated[tuple[str, ...], BeforeValidator(as_patterns)] = ()
    layers: Annotated[str, BeforeValidator(as_layers)] | None = None
    quantize: Quantize | None = None
    activations: Activations | None = None
    prune: Prune | None = None
    lowrank: LowRank | None = None
    score: Annotated[Method, BeforeValidator(as_method)] | None = None
    true_input_target: bool = False
    solver: Annotated[tuple[Method, ...], BeforeValidator(as_methods)] = (Method(name="nearest"),)

    @property
    def ranges(self) -> tuple[tuple[int, int], ...] | None:
        """First and last decoder block of each range of ``layers``; None for all blocks and what is outside of them."""
        if self.layers is None:
            return None
        found = [_LAYERS.fullmatch(part) for part in self.layers.split(",")]
        return tuple((int(part[1]), int(part[2] or part[1])) for part in found if part is not None)

    @classmethod
    def outside(cls, target: str, grid: OutsideGrid) -> Step:
        """The step that puts the ``embeddings`` or the ``head`` on ``grid``."""
        return cls(
            targets=(target,), quantize=grid, **({} if grid.solver is None else {"solver": grid.solver})
        )
