from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.errors import UserError
from compress.report import Report


def test_a_report_comes_back_from_its_file(make_report: Callable[..., Report], tmp_path: Path) -> None:
    report = make_report(sensitivity={"ranks": [1, 2]})
    report.save(tmp_path / "compress.json")
    assert Report.read(tmp_path / "compress.json") == report


def test_what_is_not_finite_becomes_null(make_report: Callable[..., Report], tmp_path: Path) -> None:
    report = make_report()
    weights = (report.weights[0].model_copy(update={"error": float("inf")}),)
    make_report(weights=weights).save(tmp_path / "compress.json")
    data = json.loads((tmp_path / "compress.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert data["weights"][0]["error"] is None


def test_a_later_field_is_ignored_and_a_later_schema_refused(
    make_report: Callable[..., Report], tmp_path: Path
) -> None:
    path = tmp_path / "compress.json"
    data = make_report().model_dump(mode="json")
    path.write_text(json.dumps({**data, "new": 1}), encoding="utf-8")
    assert Report.read(path) == make_report()
    path.write_text(json.dumps({**data, "schema_version": 2}), encoding="utf-8")
    with pytest.raises(UserError, match="schema_version"):
        Report.read(path)


def test_sums(make_report: Callable[..., Report]) -> None:
    report = make_report()
    assert report.bits_per_weight == pytest.approx(4.125)
    assert report.ratio == report.bytes.source / report.bytes.actual
    assert make_report(weights=()).bits_per_weight is None


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b"\xff"])
def test_what_is_no_report_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "compress.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"compress\.json"):
        Report.read(path)
