"""The sections of a recipe beside its grids: one pydantic model for each, extra keys refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from compress_kernels.activation_scheme import ActivationScheme
from pydantic import BeforeValidator, Field, model_validator

from compress.recipe.grids import OutsideGrid, Quantize
from compress.recipe.section import Method, Section, as_method, as_methods

GRADIENT_TOKENS = 1 << 16
"""Tokens that gradients are taken on, at most, unless a recipe says otherwise."""


class Calibrate(Section):
    """Where the calibration tokens come from: a file, a hub dataset or ``embedded``.

    Every window begins with the BOS token where ``bos`` says so; ``null`` does as the tokenizer does by itself. Gradients are
    those of next tokens that are drawn from the model (``labels: model``, the Fisher information) or are the text's
    (``labels: data``, the observed Fisher information).

    ``sampler`` reads more windows than ``samples`` and chooses, as in ``heal``: ``kmeans``, ``sensitivity``, ``el2n``, ``self``
    (:data:`compress.recipe.registry.SAMPLERS`); ``null`` takes them at random.

    ``gradient_tokens``: gradients are taken on so many tokens at most, in evenly spaced windows. Every block's inputs are kept
    for them, and a backward costs two forwards.
    """

    data: str = "embedded"
    samples: int = Field(128, ge=1, le=1_000_000)
    length: int = Field(2048, ge=2, le=1 << 24)
    bos: bool | None = None
    labels: Literal["model", "data"] = "model"
    sampler: Annotated[Method | None, BeforeValidator(as_method)] = None
    gradient_tokens: int = Field(GRADIENT_TOKENS, ge=1, le=1 << 40)


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

    ``experts`` is the share of the routed experts that every block with a mixture keeps: those of the highest saliency, REAP's
    (``reap``) or how many tokens are sent to them (``frequency``); nothing is fitted. With ``experts_by: merge`` as many
    clusters of experts whose outputs are alike become one each, the mean of their weights.

    With ``merge`` (a cosine) neurons whose rows of weights are at least so alike go first: the fit puts what they said onto
    their twins (:mod:`compress.prune.twins`). With ``allocate: fisher`` blocks keep different numbers of neurons, the same
    number in total, chosen by the gradients of the model's loss. ``counts`` says of single blocks how many neurons stay; the
    others keep all, and ``neurons`` is left out. No transformers configuration describes blocks of different widths: the result
    is loaded after ``import compress``.
    """

    neurons: float | None = Field(None, gt=0, le=1)
    groups: float | None = Field(None, gt=0, le=1)
    experts: float | None = Field(None, gt=0, le=1)
    experts_by: Literal["reap", "frequency", "merge"] = "reap"
    counts: Mapping[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] | None = Field(
        None, min_length=1
    )
    merge: float | None = Field(None, gt=0, le=1)
    allocate: Literal["uniform", "fisher"] = "uniform"

    @property
    def refits(self) -> bool:
        """Whether weights are fitted anew: those that read neurons or head groups."""
        return not (self.neurons is None and self.groups is None and self.counts is None)

    @model_validator(mode="after")
    def _one_at_least(self) -> WidthPruning:
        if self.counts is not None and self.neurons is not None:
            raise ValueError("give either 'neurons' or 'counts'")
        if not self.refits and self.experts is None:
            raise ValueError("give 'neurons', 'groups', 'experts' or several of them, or 'counts'")
        if self.experts_by != "reap" and self.experts is None:
            raise ValueError("'experts_by' says which 'experts' stay or become one: give their share")
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
