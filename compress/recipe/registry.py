"""Registry of methods: name → module and class. A new method is one file and one line here, or an entry point of a package."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from compress.errors import UserError

SCORES = {
    "magnitude": "compress.score.magnitude:Magnitude",
    "activation-diagonal": "compress.score.activation:ActivationDiagonal",
    "activation": "compress.score.activation:Activation",
    "imatrix": "compress.score.imatrix:Imatrix",
    "input-scale": "compress.score.input_scale:InputScale",
    "fisher-rows": "compress.score.fisher:FisherRows",
    "fisher": "compress.score.fisher:Fisher",
    "fisher-diagonal": "compress.score.fisher_diagonal:FisherDiagonal",
}

SALIENCIES = {
    "magnitude": "compress.score.saliency:MagnitudeSaliency",
    "wanda": "compress.score.saliency:WandaSaliency",
    "fisher": "compress.score.fisher_diagonal:FisherSaliency",
    "relative": "compress.score.saliency:RelativeSaliency",
    "random": "compress.score.saliency:RandomSaliency",
}

STRUCTURES = {
    "factors": "compress.structures.low_rank.factors:Factors",
    "factors-and-columns": "compress.structures.low_rank.sums:FactorsAndColumns",
    "factors-and": "compress.structures.low_rank.sums:FactorsAnd",
    "integer": "compress.structures.grids.integer:IntegerGrid",
    "affine": "compress.structures.grids.affine:AffineGrid",
    "nf4": "compress.structures.grids.nf4:NF4Grid",
    "table": "compress.structures.grids.value_table:TableGrid",
    "float": "compress.structures.grids.floats:FloatGrid",
    "gguf": "compress.structures.grids.k_quants:GGUFGrid",
    "masked": "compress.structures.sparse.masked:Masked",
    "masked-grid": "compress.structures.sparse.masked_grid:MaskedGrid",
}

SOLVERS = {
    "weighted_svd": "compress.solvers.weighted_svd:WeightedSVD",
    "lost": "compress.solvers.lost:LOST",
    "oats": "compress.solvers.oats:OATS",
    "eora": "compress.solvers.eora:EoRA",
    "eva": "compress.solvers.eva:EVA",
    "lora": "compress.solvers.lora:LoRA",
    "nearest": "compress.solvers.nearest:Nearest",
    "awq_clips": "compress.solvers.awq_clips:AWQClips",
    "gptq": "compress.solvers.gptq:GPTQ",
    "wanda": "compress.solvers.wanda:Wanda",
    "refit": "compress.solvers.refit:Refit",
    "sparsegpt": "compress.solvers.sparsegpt:SparseGPT",
    "alps": "compress.solvers.alps:ALPS",
    "awp": "compress.solvers.awp:AWP",
    "coordinate_descent": "compress.solvers.coordinate_descent:CoordinateDescent",
    "yaqa": "compress.solvers.yaqa:YAQA",
    "deepshape": "compress.solvers.deepshape:DeepShape",
    "group_scales": "compress.solvers.group_scales:GroupScales",
    "random": "compress.solvers.random:RandomSearch",
    "adaround": "compress.solvers.adaround:AdaRound",
    "hqq": "compress.solvers.hqq:HQQ",
    "signround": "compress.solvers.signround:SignRound",
    "gsq": "compress.solvers.gsq:GSQ",
    "learned_masks": "compress.solvers.learned_masks:LearnedMasks",
    "reconstruct": "compress.solvers.reconstruct:Reconstruct",
    "lottery": "compress.solvers.lottery:Lottery",
}

TRANSFORMS = {
    "awq": "compress.transforms.awq:AWQ",
    "rotation": "compress.transforms.rotation:Rotation",
    "smoothquant": "compress.transforms.smoothquant:SmoothQuant",
}

OBSERVERS = {
    "minmax": "compress.activations.observers:MinMax",
    "percentile": "compress.activations.observers:Percentile",
    "mse": "compress.activations.observers:MSE",
}

EXPORTERS = {
    "compressed-tensors": "compress.formats.compressed_tensors:CompressedTensors",
    "bitsandbytes": "compress.formats.bitsandbytes:BitsAndBytes",
    "gguf": "compress.formats.gguf.exporter:GGUF",
    "gptq": "compress.formats.gptq:GPTQ",
    "awq": "compress.formats.awq:AWQ",
    "mlx": "compress.formats.mlx:MLX",
    "fp8": "compress.formats.fp8:FP8",
    "modelopt": "compress.formats.modelopt:ModelOpt",
    "native": "compress.formats.native:Native",
    "dense": "compress.formats.dense:DenseExport",
}

TRAINABLES = {
    "norms": "compress.healing.trainables.norms:Norms",
    "scales": "compress.healing.trainables.scales:Scales",
    "values": "compress.healing.trainables.values:Values",
    "smallest": "compress.healing.trainables.smallest:Smallest",
    "factors": "compress.healing.trainables.factors:Factors",
    "nested": "compress.healing.trainables.nested:Nested",
    "codes": "compress.healing.trainables.codes:Codes",
    "bits": "compress.healing.trainables.bits:Bits",
    "lora": "compress.healing.trainables.lora:LoRA",
    "sorsa": "compress.healing.trainables.sorsa:SORSA",
    "svft": "compress.healing.trainables.svft:SVFT",
    "loldu": "compress.healing.trainables.loldu:LoLDU",
    "bone": "compress.healing.trainables.bone:Bone",
}

LOSSES = {
    "kl": "compress.healing.losses.kl:KL",
    "reverse-kl": "compress.healing.losses.reverse_kl:ReverseKL",
    "js": "compress.healing.losses.js:JS",
    "alpha": "compress.healing.losses.alpha:Alpha",
    "bd": "compress.healing.losses.bd:BD",
    "f": "compress.healing.losses.f_divergence:FDivergence",
    "sinkhorn": "compress.healing.losses.sinkhorn:Sinkhorn",
    "logits": "compress.healing.losses.logits:Logits",
    "mixed": "compress.healing.losses.mixed:Mixed",
    "hidden": "compress.healing.losses.hidden:Hidden",
    "dual-head": "compress.healing.losses.dual_head:DualHead",
    "trilateral": "compress.healing.losses.trilateral:Trilateral",
    "confident": "compress.healing.losses.confident:Confident",
    "ce": "compress.healing.losses.ce:CE",
}

FILTERS = {
    "correct": "compress.healing.filters.correct:Correct",
    "hard": "compress.healing.filters.hard:Hard",
    "loss": "compress.healing.filters.by_loss:ByLoss",
}

SAMPLERS = {
    "uniform": "compress.healing.samplers.uniform:Uniform",
    "fresh": "compress.healing.samplers.fresh:Fresh",
    "kmeans": "compress.healing.samplers.kmeans:KMeans",
    "el2n": "compress.healing.samplers.el2n:EL2N",
    "sensitivity": "compress.healing.samplers.sensitivity:Sensitivity",
    "self": "compress.healing.samplers.self_written:SelfWritten",
}

PENALTIES = {
    "decay": "compress.healing.penalties.decay:Decay",
    "orthonormal": "compress.healing.penalties.orthonormal:Orthonormal",
    "kurtosis": "compress.healing.penalties.kurtosis:Kurtosis",
    "flat": "compress.healing.penalties.flat:Flat",
    "group": "compress.healing.penalties.group:Group",
    "discrete": "compress.healing.penalties.discrete:Discrete",
    "distribution": "compress.healing.penalties.distribution:Distribution",
}

OPTIMIZERS = {
    "adamw": "compress.healing.optimizers.adamw:AdamW",
    "adamw8": "compress.healing.optimizers.adamw8:AdamW8",
    "lion": "compress.healing.optimizers.lion:Lion",
    "spsa": "compress.healing.optimizers.spsa:SPSA",
}

SCHEDULES = {
    "linear": "compress.healing.schedules.linear:Linear",
    "cosine": "compress.healing.schedules.cosine:Cosine",
    "growing": "compress.healing.schedules.growing:Growing",
    "refined": "compress.healing.schedules.refined:Refined",
}

ENDS = {
    "best": "compress.healing.ends.best:Best",
    "wise": "compress.healing.ends.wise:WiSE",
    "bang": "compress.healing.ends.bang:Bang",
}

LAYERS = {
    "lost": "compress.train.layers.lost:Lost",
    "low-rank": "compress.train.layers.lost:LowRank",
    "block-low-rank": "compress.train.layers.block_low_rank:BlockLowRank",
    "bits": "compress.train.layers.bits:Bits",
    "shift": "compress.train.layers.shift:Shift",
}

MASKS = {
    "magnitude": "compress.train.masks.magnitude:Magnitude",
    "random": "compress.train.masks.random:Random",
    "rewind": "compress.train.masks.rewind:Rewind",
    "soft-shrink": "compress.train.masks.soft_shrink:SoftShrink",
    "irrelevant": "compress.train.masks.irrelevant:Irrelevant",
    "hyper": "compress.train.masks.hyper:Hyper",
    "auto": "compress.train.masks.auto:Auto",
    "groups": "compress.train.masks.groups:Groups",
    "lq": "compress.train.masks.lq:LQ",
    "gg": "compress.train.masks.gg:GG",
    "l0": "compress.train.masks.l0:L0",
    "regrow": "compress.train.masks.regrow:Regrow",
    "jackpot": "compress.train.masks.jackpot:Jackpot",
    "gumbel": "compress.train.masks.gumbel:Gumbel",
}

_KINDS = {
    "score": SCORES,
    "saliency": SALIENCIES,
    "structure": STRUCTURES,
    "solver": SOLVERS,
    "transform": TRANSFORMS,
    "observer": OBSERVERS,
    "exporter": EXPORTERS,
    "trainable": TRAINABLES,
    "loss": LOSSES,
    "filter": FILTERS,
    "sampler": SAMPLERS,
    "penalty": PENALTIES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "end": ENDS,
    "layers": LAYERS,
    "masks": MASKS,
}


RENAMED = {
    "asymmetric": "true_input_target",
    "coordinate": "coordinate_descent",
    "drop": "depth_pruning",
    "drop2": "prune-depth2",
    "group": "group_size",
    "narrow": "width_pruning",
    "narrow75": "prune-width75",
    "narrow75-dress": "prune-width75-dress",
    "narrow75-fisher": "prune-width75-fisher",
    "order": "act_order",
    "regroup": "group_scales",
    "reshape": "transforms",
    "shrink": "clip_ratios",
    "truncate": "weighted_svd",
    "within_block": "true_sequential",
}
"""Former names → today's, for error sentences."""


def find(kind: str, name: str) -> Any:
    """The class registered as ``name`` among the scores, structures, solvers or exporters.

    Raises:
        UserError: nothing is registered under that name; the nearest name is suggested.
    """
    table = _KINDS[kind]
    if name in table:
        module, _, attribute = table[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    others = plugins(kind)
    if name not in others:
        word = "format" if kind == "exporter" else kind
        raise UserError(f"there is no {word} called '{name}'{did_you_mean(name, [*table, *others])}")
    try:
        return others[name].load()
    except Exception as error:  # whatever the code of another package does
        raise UserError(
            f"the {kind} '{name}' of another package ({others[name].value}) cannot be imported: {type(error).__name__}: {error}"
        ) from error


def plugins(kind: str) -> dict[str, EntryPoint]:
    """Methods of installed packages: name → entry point of the group ``compress.solvers``, ``compress.scores``, and so on.

    Names of this package come before them.
    """
    return {point.name: point for point in entry_points(group=f"compress.{kind}s")}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is spelt most like ``word``, or ``None`` where none is."""
    choices = sorted(known)
    if (now := RENAMED.get(word)) in choices:
        return now
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return close[0] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the closest known word, or all of them."""
    choices = sorted(known)
    close = nearest(word, choices)
    return f"; did you mean '{close}'?" if close is not None else f": known are {', '.join(choices)}"
