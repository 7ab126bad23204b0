"""The one list of methods: name → where it lives. A new method is one file and one line here."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

from compress.errors import UserError

SCORES = {
    "magnitude": "compress.score.magnitude:Magnitude",
    "activation-diagonal": "compress.score.activation:ActivationDiagonal",
    "activation": "compress.score.activation:Activation",
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
    "nf4": "compress.structures.grids.nf4:NF4Grid",
    "masked": "compress.structures.sparse.masked:Masked",
    "masked-grid": "compress.structures.sparse.masked_grid:MaskedGrid",
}

SOLVERS = {
    "truncate": "compress.solvers.weighted_svd:Truncate",
    "lost": "compress.solvers.lost:Lost",
    "oats": "compress.solvers.oats:Oats",
    "eora": "compress.solvers.eora:Eora",
    "nearest": "compress.solvers.nearest:Nearest",
    "gptq": "compress.solvers.gptq:GPTQ",
    "wanda": "compress.solvers.wanda:Wanda",
    "refit": "compress.solvers.refit:Refit",
    "sparsegpt": "compress.solvers.sparsegpt:SparseGPT",
    "alps": "compress.solvers.alps:ALPS",
    "awp": "compress.solvers.awp:AWP",
    "coordinate": "compress.solvers.coordinate_descent:Coordinate",
    "yaqa": "compress.solvers.yaqa:YAQA",
    "regroup": "compress.solvers.group_scales:Regroup",
    "random": "compress.solvers.random:RandomSearch",
    "adaround": "compress.solvers.adaround:AdaRound",
    "hqq": "compress.solvers.hqq:HQQ",
    "signround": "compress.solvers.signround:SignRound",
    "lottery": "compress.solvers.lottery:Lottery",
}

RESHAPES = {
    "awq": "compress.transforms.awq:AWQ",
}

EXPORTERS = {
    "compressed-tensors": "compress.formats.compressed_tensors:CompressedTensors",
    "bitsandbytes": "compress.formats.bitsandbytes:BitsAndBytes",
    "native": "compress.formats.native:Native",
    "dense": "compress.formats.dense:DenseExport",
}

_KINDS = {
    "score": SCORES,
    "saliency": SALIENCIES,
    "structure": STRUCTURES,
    "solver": SOLVERS,
    "reshape": RESHAPES,
    "exporter": EXPORTERS,
}


def find(kind: str, name: str) -> Any:
    """The class registered as ``name`` among the scores, structures, solvers or exporters.

    Raises:
        UserError: nothing is registered under that name; the nearest name is suggested.
    """
    table = _KINDS[kind]
    if name not in table:
        raise UserError(f"there is no {kind} called '{name}'{did_you_mean(name, table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the closest known word, or all of them."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f": known are {', '.join(choices)}"
