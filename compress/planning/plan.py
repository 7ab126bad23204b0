"""The plan of a run: every output tensor, its size, and what the run will need. :mod:`compress.planning.make` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compress_kernels.activations import ActivationScheme, hadamard_blocks
from compress_kernels.layouts import Layout, TensorSpec, nbytes
from torch import Tensor

from compress.checkpoint.shards import Shard
from compress.formats import AddsFiles, Exporter, Facts
from compress.models.kv_cache import CachedAttention
from compress.models.views import WeightView
from compress.planning.coverage import Coverage
from compress.planning.economy import Promised
from compress.planning.memory import Economy
from compress.planning.methods import Methods
from compress.planning.reads_text import reads_text
from compress.planning.work import Work
from compress.recipe.recipe import Recipe
from compress.structures.choices import Choice
from compress.system.frames import frame
from compress.transforms.base import Transform

Choices = Mapping[str, Choice | None]
"""Weight → what was chosen of its structure's freedom, ``None`` to leave it whole."""


@dataclass(frozen=True)
class PlannedWeight:
    """A weight that will be compressed.

    Attributes:
        view: the weight.
        step: the index of the recipe's step that takes it.
        methods: that step's structure, score and solvers.
        layout: what the structure packs it into.
        stored: the layout on disk: ``layout``, unless the form decodes it.
        tensors: full name → spec of the tensors that the output holds for it; in a dense checkpoint several weights
            can share one.
        input_from: the weight that holds its input factor, where that is another one.
    """

    view: WeightView
    step: int
    methods: Methods
    layout: Layout
    stored: Layout
    tensors: Mapping[str, TensorSpec]
    input_from: str | None = None

    @property
    def name(self) -> str:
        """The weight's name in the model."""
        return self.view.name

    @property
    def numel(self) -> int:
        """Elements of the dense weight."""
        return self.view.shape[0] * self.view.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in the output; a factor that it shares counts where it is held."""
        size = nbytes(self.stored, self.view.shape)
        if self.input_from is None:
            return size
        elsewhere = f"{self.input_from}."
        return size - sum(spec.nbytes for name, spec in self.tensors.items() if name.startswith(elsewhere))

    @property
    def activations(self) -> ActivationScheme | None:
        """How its inputs are rounded."""
        return self.methods.activations

    def in_rounded_basis(self, weight: Tensor) -> Tensor:
        """A weight ``[out, in]`` in the basis in which its inputs are rounded, or back again, in its dtype."""
        order = None if self.activations is None else self.activations.hadamard
        return weight if order is None else hadamard_blocks(weight, order).to(weight.dtype)

    @property
    def needs(self) -> frozenset[str]:
        """The statistics of its inputs that have to be gathered."""
        # An expert's tokens are others in the dense model than in the compressed one: there is no cross moment.
        needs = self.methods.needs - ({"cross"} if self.view.kind == "expert" else frozenset())
        rotated = self.activations is not None and self.activations.hadamard is not None
        # A diagonal in another basis is that of the whole matrix.
        return needs | {"gram"} if rotated and "diagonal" in needs else needs


@dataclass(frozen=True)
class Skipped:
    """A weight, or a tensor of two or more dimensions, that stays as it is: why, and its bytes in the source."""

    name: str
    reason: str
    nbytes: int


@dataclass(frozen=True)
class Plan:
    """The whole of a run before it begins.

    Attributes:
        recipe: what was asked for.
        format: the name of the form that is written, and ``format_reason`` why that one.
        weights: what is compressed, in the model's order.
        skipped: what is not, and why.
        passed_through: names of the tensors that are copied byte for byte.
        shards: the output's weight files, to the byte; none holds over ``max_shard_size`` bytes of tensors.
        quantization_config: what ``config.json`` will say; ``None`` for a dense checkpoint.
        source_bytes: bytes of the source's weight files.
        source_numel: numbers in the source's tensors.
        peak_memory: an estimate, in bytes, of what a run takes beyond the interpreter and its libraries.
        ranks: weight → the rank that the sensitivity pass has chosen, and what goes with it, ``None`` to leave it whole.
        dropped: the source's decoder blocks that are left out.
        width_pruned: which neurons and groups of heads stay, as :mod:`compress.prune.width` records it; empty for all.
        rotation: which spaces of the source are rotated, as :mod:`compress.transforms.rotation` records it; empty for none.
        transforms: what is done to a block before its weights are solved.
        rewritten: parameter → disk tensor of the vectors that a transform may change; their shapes and dtypes stay.
        healed: trainable → how many numbers healing trains of it.
        sparsities: weight → the share of its elements that the sensitivity pass has chosen to leave out.
        source_form: the quantized form that the source's weights are decoded from; empty for a dense source.
        converted: output tensor → the source's tensors that it is made of, where the form keeps none as it is.
        coverage: the share of the blocks' matrix parameters that is compressed.
        form_options: what was found out about the form by trying transformers, as plain data.
        importance: weight → mean squares of its inputs fp32 ``[in]``, where its score takes them from an importance matrix.
        imatrix: name → SHA-256 of the importance matrices.
        notes: sentences on what the recipe asks for and the model does not give.
        promised: how the run keeps to a bound of memory; ``None`` where there is none.
        device_memory: bytes that it takes on an accelerator, an estimate; 0 where blocks run on the CPU.
        work: what a run computes, for an estimate of its time; ``None`` where it is not estimated.
    """

    recipe: Recipe
    format: str
    format_reason: str
    weights: tuple[PlannedWeight, ...]
    skipped: tuple[Skipped, ...]
    passed_through: tuple[str, ...]
    shards: tuple[Shard, ...]
    max_shard_size: int
    quantization_config: Mapping[str, Any] | None
    source_bytes: int
    source_numel: int
    peak_memory: int
    exporter: Exporter
    facts: Facts
    ranks: Choices = field(default_factory=dict)
    dropped: tuple[int, ...] = ()
    width_pruned: Mapping[str, Any] = field(default_factory=dict)
    rotation: Mapping[str, Any] = field(default_factory=dict)
    transforms: tuple[Transform, ...] = ()
    rewritten: Mapping[str, str] = field(default_factory=dict)
    healed: Mapping[str, int] = field(default_factory=dict)
    sparsities: Mapping[str, float] = field(default_factory=dict)
    source_form: str = ""
    converted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    coverage: Coverage = field(default_factory=Coverage)
    form_options: Mapping[str, Any] = field(default_factory=dict)
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    imatrix: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    promised: Promised | None = None
    device_memory: int = 0
    work: Work | None = None

    @property
    def economy(self) -> Economy:
        """How the run saves memory."""
        return Economy() if self.promised is None else self.promised.economy

    @property
    def total_bytes(self) -> int:
        """Bytes of the output's weight files, headers included."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the compressed weights in the output."""
        return sum(weight.nbytes for weight in self.weights)

    @property
    def outside_bytes(self) -> int:
        """Bytes of the embeddings and the head in the output, compressed or not; a weight that they share counts once."""
        planned = {weight.name: weight.nbytes for weight in self.weights}
        views = [view for view in self.facts.views if view.kind in ("embedding", "head")]
        left = {source for view in views if view.name not in planned for source in view.sources}
        kept = sum(self.facts.headers[name].nbytes for name in left)
        return kept + sum(planned.get(view.name, 0) for view in views)

    @property
    def bits_per_weight(self) -> float:
        """Bits that one number of a compressed weight takes, its scales and zero points included."""
        return 8 * self.weight_bytes / max(1, sum(weight.numel for weight in self.weights))

    @property
    def bits_per_weight_model(self) -> float:
        """Bits that one number of the model takes, all tensors taken together."""
        return 8 * sum(shard.tensor_bytes for shard in self.shards) / max(1, self.source_numel)

    @property
    def needs(self) -> dict[str, frozenset[str]]:
        """Weight → the statistics of its inputs that its methods read."""
        return {weight.name: weight.needs for weight in self.weights}

    @property
    def needs_data(self) -> bool:
        """Whether any weight is compressed by looking at data."""
        blockwise = any(weight.methods.block_solvers for weight in self.weights)
        ranges = self.facts.kv_cache is not None or any(
            weight.activations is not None and weight.activations.stored for weight in self.weights
        )
        return blockwise or ranges or bool(self.transforms) or any(self.needs.values())

    @property
    def reads_text(self) -> bool:
        """Whether the run looks at calibration text: for a weight, or to choose what of the model's shape stays."""
        return self.needs_data or reads_text(self.recipe, self.facts.dtype)

    @property
    def needs_dense(self) -> bool:
        """Whether the dense model's activations have to be carried beside those of the compressed one."""
        return any("cross" in weight.needs or weight.methods.block_solvers for weight in self.weights)

    @property
    def coverage_note(self) -> str:
        """A warning where too little of a block is compressed; empty where enough is, and where no weight is to be."""
        if self.coverage.is_enough or not self.weights:
            return ""
        return self.coverage.sentence({one.name: one.reason for one in self.skipped})

    @property
    def heal_note(self) -> str:
        """What healing trains, in a sentence; empty without healing."""
        if self.recipe.heal is None:
            return ""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.healed.items())
        return f"{kinds}, on {self.recipe.heal.tokens:,} tokens; the bytes stay as they are"

    def attention(self, index: int) -> tuple[CachedAttention, ...]:
        """The attention modules of one block whose keys and values are scaled."""
        cache = self.facts.kv_cache
        return () if cache is None else tuple(one for one in cache.attention if one.block == index)

    @property
    def form_files(self) -> dict[str, str]:
        """The text files that the form has of its own beside the weights, by name."""
        if not isinstance(self.exporter, AddsFiles) or not self.weights:
            return {}
        return self.exporter.files(self.weights, self.facts)

    @property
    def kv_label(self) -> str:
        """How keys and values are stored, in a few words; empty where the recipe leaves that to the server."""
        return "" if self.facts.kv_cache is None else self.facts.kv_cache.scheme.label

    @property
    def kv_note(self) -> str:
        """A sentence on the key-value cache; empty where the recipe leaves it to the server."""
        if self.facts.kv_cache is None:
            return ""
        only = "; transformers alone reads integers there, vLLM takes fp8" if "int" in self.kv_label else ""
        return f"Keys and values are stored as {self.kv_label}, in {len(self.facts.kv_cache.attention)} layers{only}."

    def block(self, index: int | None) -> tuple[PlannedWeight, ...]:
        """The weights of one decoder block, or with ``None`` those outside the blocks."""
        return tuple(weight for weight in self.weights if weight.view.block == index)

    def to_frame(self) -> Any:
        """A ``pandas.DataFrame``: a row for each weight that would be compressed, by name.

        Raises:
            UserError: pandas is not installed.
        """
        rows = (
            {
                "name": weight.name,
                "block": weight.view.block,
                "kind": weight.view.kind,
                "out": weight.view.shape[0],
                "in": weight.view.shape[1],
                "step": weight.step,
                "bytes": weight.nbytes,
                "bits_per_weight": 8 * weight.nbytes / weight.numel,
            }
            for weight in self.weights
        )
        return frame(rows, index="name")

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``compress.json`` and for scripts."""
        return {
            "recipe": self.recipe.public(),
            "format": self.format,
            "format_reason": self.format_reason,
            "form_options": dict(self.form_options),
            "source_bytes": self.source_bytes,
            "coverage": self.coverage.share,
            "total_bytes": self.total_bytes,
            "outside_bytes": self.outside_bytes,
            "bits_per_weight": self.bits_per_weight,
            "bits_per_weight_model": self.bits_per_weight_model,
            "peak_memory": self.peak_memory,
            **({"device_memory": self.device_memory} if self.device_memory else {}),
            "weights": {weight.name: _weight_json(weight) for weight in self.weights},
            "skipped": [{"name": s.name, "reason": s.reason, "bytes": s.nbytes} for s in self.skipped],
            "passed_through": list(self.passed_through),
            "rewritten": sorted(self.rewritten.values()),
            "shards": {shard.filename: shard.nbytes for shard in self.shards},
            "max_shard_size": self.max_shard_size,
            "ranks": {name: None if one is None else one.to_json() for name, one in self.ranks.items()},
            "dropped": list(self.dropped),
            "width_pruned": dict(self.width_pruned),
            "sparsities": dict(self.sparsities),
            "source_form": self.source_form,
            **({} if self.facts.kv_cache is None else {"kv_cache": self.facts.kv_cache.scheme.to_json()}),
            **({"rotation": dict(self.rotation)} if self.rotation else {}),
            **({"converted": sorted(self.converted)} if self.converted else {}),
            **({"imatrix": dict(self.imatrix)} if self.imatrix else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
        }


def _weight_json(weight: PlannedWeight) -> dict[str, Any]:
    return {
        "shape": list(weight.view.shape),
        "layout": weight.layout.to_json(),
        "step": weight.step,
        "bytes": weight.nbytes,
        **({} if weight.activations is None else {"activations": weight.activations.to_json()}),
        "sources": list(weight.view.sources),
    }
