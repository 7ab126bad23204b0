"""The text files of an output that say what was done: `compress.json`, `report.html` and the model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compress.checkpoint.source import Source
from compress.checkpoint.writer import REPORT
from compress.evaluation import Evaluation
from compress.report.card import CARD, MARK, hub_name, model_card, read_card
from compress.report.page import render_report
from compress.report.schema import Report
from compress.system.files import write_text


def report_files(report: Report, source: Source, name: str) -> dict[str, str]:
    """File name → its text, for an output that nothing was measured of yet.

    Args:
        report: of the run.
        source: the checkpoint that it compressed.
        name: of the output's folder.
    """
    card = model_card(report, name=name, card=read_card(source.path), base_model=hub_name(source.name))
    return {REPORT: report.to_text(), "report.html": render_report(report, [], name=name), CARD: card}


def write_card(folder: Path, report: Report, evaluations: Sequence[Evaluation]) -> None:
    """Write the card of a finished output anew, with what was measured of it."""
    name = folder.resolve().name
    write_text(folder / CARD, model_card(report, evaluations, name=name, card=read_card(folder)), mark=MARK)
