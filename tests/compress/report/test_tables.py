from __future__ import annotations

import math
from collections.abc import Callable

from compress.evaluation import CheckpointFigures
from compress.report.tables import QUALITY, Cell, evaluation_table, number, quality_cells, with_error
from compress.system import units as words


def test_what_is_no_number_is_not_sorted_by() -> None:
    assert number(0.25, words.percent) == Cell("25.0%", 0.25)
    assert number(math.inf, words.figure) == Cell("∞", None)
    assert number(None, words.figure) == Cell("–", None)


def test_an_error_stands_behind_its_figure_alone() -> None:
    assert with_error(0.02, 0.001, words.divergence).text == "0.0200 ± 0.0010"
    assert with_error(0.02, None, words.divergence).text == "0.0200"
    assert with_error(None, 0.001, words.divergence).text == "–"


def test_every_column_has_a_cell(make_row: Callable[..., CheckpointFigures]) -> None:
    row = make_row(
        "w4",
        5,
        0.1,
        kl_error=0.01,
        top1=0.9,
        top1_error=0.02,
        perplexity_ratio=1.1,
        perplexity_ratio_error=0.1,
    )
    assert len(quality_cells(row)) == len(quality_cells(None)) == len(QUALITY)
    table = evaluation_table([make_row("dense", 9), row], row)
    assert [line.kind for line in table.rows] == ["dense", "own"]
    assert all(len(line.cells) == len(table.columns) for line in table.rows)
    texts = [cell.text for cell in table.rows[1].cells]
    for expected in ("0.1000 ± 0.0100", "90.0% ± 2.0%", "1.1000 ± 0.1000"):
        assert expected in texts
