"""The section on low rank: a curve for every weight, cut at its rank."""

from __future__ import annotations

import re
from collections.abc import Callable

from compress.report import Report
from compress.report.spectra import spectra_view, table

Make = Callable[..., Report]


def with_spectra(report: Report, spectrum: str = "1 0.1 0.01 0") -> Report:
    info = {"spectrum": spectrum, "rank": 2, "of": 4, "lost": 0.01}
    weights = tuple(weight.model_copy(update={"info": info}) for weight in report.weights)
    return report.model_copy(update={"weights": weights})


def test_no_section_without_low_rank(make_report: Make) -> None:
    assert spectra_view(make_report()) is None


def test_a_row_for_each_kind_and_a_cell_for_each_block(make_report: Make) -> None:
    view = spectra_view(with_spectra(make_report(count=3)))
    assert view is not None
    assert view.blocks == 3
    assert len(view.rows) == 7
    assert all(len(cells) == 3 for _, cells in view.rows)


def test_the_curve_falls_with_the_singular_values(make_report: Make) -> None:
    view = spectra_view(with_spectra(make_report(count=1)))
    assert view is not None
    (points,) = re.findall(r'points="([^"]+)"', view.rows[0][1][0])
    places = [tuple(map(float, pair.split(","))) for pair in points.split()]
    # Ten times less is a quarter of the four decades that are drawn; zero lies at the bottom.
    assert [y for _, y in places] == [0.0, 10.0, 20.0, 40.0]
    assert [x for x, _ in places] == sorted(x for x, _ in places)


def test_the_cut_stands_at_the_rank(make_report: Make) -> None:
    view = spectra_view(with_spectra(make_report(count=1)))
    assert view is not None
    cell = view.rows[0][1][0]
    assert 'x1="50.0"' in cell
    assert "rank 2 of 4" in cell


def test_a_block_without_that_weight_is_an_empty_cell(make_report: Make) -> None:
    report = with_spectra(make_report(count=2))
    fewer = report.model_copy(update={"weights": report.weights[1:]})
    view = spectra_view(fewer)
    assert view is not None
    (query,) = [cells for name, cells in view.rows if name == "q_proj"]
    assert str(query[0]) == "<td></td>"
    assert "<svg" in query[1]


def test_one_value_alone_is_drawn(make_report: Make) -> None:
    view = spectra_view(with_spectra(make_report(count=1), "1"))
    assert view is not None
    assert 'points="0.0,' in view.rows[0][1][0]


def test_names_cannot_break_the_page(make_report: Make) -> None:
    report = with_spectra(make_report(count=1, suffix='"><script>'))
    view = spectra_view(report)
    assert view is not None
    assert "<script>" not in table(view)
    assert table(view).count("<tr>") == 8
