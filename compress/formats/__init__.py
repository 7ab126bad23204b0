"""The forms in which a compressed checkpoint is written.

Here: an exporter for each form with its reader, the choice between them, and a trial of transformers' own loader. Not here: the
layouts of single weights (``compress_kernels.layouts``). A new form is a file with an exporter and a line in the registry.
"""

from __future__ import annotations

from .auto import Opens, choose
from .base import (
    AddsFiles,
    Decoding,
    Exporter,
    Facts,
    HasNotes,
    OwnFile,
    Planned,
    RestrictsGrids,
    with_quantization,
)
from .transformers_load import can_try, loading_error, passed_over

__all__ = [
    "AddsFiles",
    "Decoding",
    "Exporter",
    "Facts",
    "HasNotes",
    "Opens",
    "OwnFile",
    "Planned",
    "RestrictsGrids",
    "can_try",
    "choose",
    "loading_error",
    "passed_over",
    "with_quantization",
]
