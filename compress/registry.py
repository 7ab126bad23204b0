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
    "factors": "compress.structures.factors:Factors",
    "factors-and-columns": "compress.structures.sums:FactorsAndColumns",
    "factors-and": "compress.structures.sums:FactorsAnd",
    "integer": "compress.structures.integer:IntegerGrid",
    "nf4": "compress.structures.nf4:NF4Grid",
    "masked": "compress.structures.masked:Masked",
    "masked-grid": "compress.structures.masked_grid:MaskedGrid",
}

SOLVERS = {
    "truncate": "compress.solve.truncate:Truncate",
    "lost": "compress.solve.lost:Lost",
    "oats": "compress.solve.oats:Oats",
    "eora": "compress.solve.eora:Eora",
    "nearest": "compress.solve.nearest:Nearest",
    "gptq": "compress.solve.gptq:GPTQ",
    "wanda": "compress.solve.wanda:Wanda",
    "refit": "compress.solve.refit:Refit",
    "sparsegpt": "compress.solve.sparsegpt:SparseGPT",
    "alps": "compress.solve.alps:ALPS",
    "awp": "compress.solve.awp:AWP",
    "coordinate": "compress.solve.coordinate:Coordinate",
    "yaqa": "compress.solve.yaqa:YAQA",
    "regroup": "compress.solve.regroup:Regroup",
    "random": "compress.solve.random:RandomSearch",
    "adaround": "compress.solve.adaround:AdaRound",
    "hqq": "compress.solve.hqq:HQQ",
    "signround": "compress.solve.signround:SignRound",
    "lottery": "compress.solve.lottery:Lottery",
}

RESHAPES = {
    "awq": "compress.reshape.awq:AWQ",
}

EXPORTERS = {
    "compressed-tensors": "compress.export.compressed_tensors:CompressedTensors",
    "bitsandbytes": "compress.export.bitsandbytes:BitsAndBytes",
    "native": "compress.export.native:Native",
    "dense": "compress.export.dense:DenseExport",
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
