"""A finished diagnosis: its findings, as a file and back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.diagnose.base import Cell, Finding
from compress.errors import UserError
from compress.system.files import write_text

DIAGNOSIS = "diagnosis.json"
"""The file in an output's folder that the report shows."""
_MARK = '{\n "diagnosis_version": 1,'


@dataclass(frozen=True)
class Diagnosis:
    """What was found: the model's name, the text's, and a finding for each entry."""

    model: str
    data: str | None
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "model": self.model,
            "data": self.data,
            "findings": [finding.to_json() for finding in self.findings],
        }

    def save(self, path: str | Path) -> None:
        """Write a file that :meth:`read` takes.

        Raises:
            UserError: there is a link of that name, a file that holds no diagnosis, or it cannot be written.
        """
        findings = [
            {
                "entry": finding.entry,
                "title": finding.title,
                "columns": finding.columns,
                "rows": [[_finite(cell) for cell in row] for row in finding.rows],
                "advice": finding.advice,
            }
            for finding in self.findings
        ]
        whole = {"diagnosis_version": 1, "model": self.model, "data": self.data, "findings": findings}
        write_text(path, json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n", mark=_MARK)

    @classmethod
    def read(cls, path: str | Path) -> Diagnosis:
        """Read a file that :meth:`save` wrote. Raises UserError if it is none."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            findings = tuple(
                Finding(
                    str(one["entry"]),
                    str(one["title"]),
                    tuple(map(str, one["columns"])),
                    tuple(tuple(map(_cell, row)) for row in one["rows"]),
                    str(one["advice"]),
                )
                for one in data["findings"]
            )
            if any(len(row) != len(one.columns) for one in findings for row in one.rows):
                raise ValueError("a line is shorter or longer than its head")
            return cls(str(data["model"]), None if data["data"] is None else str(data["data"]), findings)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path} is no diagnosis that this version can read ({error}): "
                "diagnose again with `compress report --diagnose`."
            ) from error


def _cell(value: Any) -> Cell:
    return value if value is None or isinstance(value, int | float) else str(value)


def _finite(value: Cell) -> Cell:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
