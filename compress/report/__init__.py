"""What was done to a checkpoint, for machines (`compress.json`) and for people (`report.html`, the terminal)."""

from __future__ import annotations

from compress.report.console import print_report
from compress.report.page import render_report, write_report
from compress.report.schema import (
    BlockFigures,
    Bytes,
    Calibration,
    FormatChoice,
    Machine,
    Report,
    Shard,
    Skipped,
    SourceModel,
    StepFigures,
    WeightFigures,
)

__all__ = [
    "BlockFigures",
    "Bytes",
    "Calibration",
    "FormatChoice",
    "Machine",
    "Report",
    "Shard",
    "Skipped",
    "SourceModel",
    "StepFigures",
    "WeightFigures",
    "print_report",
    "render_report",
    "write_report",
]
