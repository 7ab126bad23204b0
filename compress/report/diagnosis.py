"""A diagnosis on the page: each finding's advice, and its table."""

from __future__ import annotations

from dataclasses import dataclass

from compress.diagnose.base import Cell as Value
from compress.diagnose.diagnosis import Diagnosis
from compress.report.tables import Cell, Row, Table
from compress.system import units as words


@dataclass(frozen=True)
class DiagnosisView:
    """The model and the text that were looked at, and for each finding a table and its advice."""

    model: str
    data: str | None
    findings: list[tuple[Table, str]]


def diagnosis_view(diagnosis: Diagnosis | None) -> DiagnosisView | None:
    """The section; None without a diagnosis."""
    if diagnosis is None:
        return None
    findings = []
    for finding in diagnosis.findings:
        first, *others = finding.columns
        rows = tuple(Row(_cell(head).text, tuple(map(_cell, rest))) for head, *rest in finding.rows)
        findings.append((Table(finding.title, first, tuple(others), rows), finding.advice))
    data = diagnosis.data
    return DiagnosisView(diagnosis.model, None if data is None else _name(data), findings)


def _name(path: str) -> str:
    """The last part of a path: pages are passed on, folders of the machine are not."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _cell(value: Value) -> Cell:
    if value is None:
        return Cell(words.NOTHING)
    if isinstance(value, float):
        return Cell(words.significant(value), value)
    return Cell(f"{value:,}" if isinstance(value, int) else value, value if isinstance(value, int) else None)
