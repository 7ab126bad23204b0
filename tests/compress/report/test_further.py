from __future__ import annotations

import dataclasses
from collections.abc import Callable

from compress.evaluation import CheckpointFigures, Evaluation
from compress.evaluation.figures import GenerationFigures, NeedleFigures, SeedSpread, TextFigures
from compress.report import Report, render_report
from compress.report.compare import by_text
from compress.report.further import further_tables, samples, seed_sentences


def whole(evaluation: Evaluation) -> Evaluation:
    def more(row: CheckpointFigures, index: int) -> CheckpointFigures:
        return dataclasses.replace(
            row,
            texts=(TextFigures("prose.txt", 16, 9.5, kl=0.25 * index if index else None, top1=0.5),),
            generation=GenerationFigures(8, 0.1, None if index == 0 else 3.5, 0.75, 16),
            continuations=("the same start", "x") if index == 0 else ("the same end", "x"),
            needle=NeedleFigures(4096, 2, 3, 1.5),
        )

    rows = [more(row, index) for index, row in enumerate(evaluation.rows)]
    seeds = (SeedSpread("w4", ("a", "b"), 0.1, 0.02),)
    return dataclasses.replace(
        evaluation, reference=rows[0], candidates=tuple(rows[1:]), prompts=("Once", "Twice"), seeds=seeds
    )


def test_tables_of_what_was_measured(make_evaluation: Callable[..., Evaluation]) -> None:
    evaluation = whole(make_evaluation())
    tables = further_tables(evaluation, evaluation.candidates[1])
    assert [table.caption for table in tables] == [
        "On prose.txt, 16 windows",
        "Generated greedily",
        "A number hidden in 4,096 tokens",
    ]
    assert [row.kind for row in tables[0].rows] == ["dense", "", "own", ""]
    for table in tables:
        assert all(len(row.cells) == len(table.columns) for row in table.rows)
    assert [cell.text for cell in tables[1].rows[1].cells] == ["10.0%", "3.5 of 8", "75.0%"]
    assert further_tables(make_evaluation(), None) == []


def test_texts_part_where_they_differ(make_evaluation: Callable[..., Evaluation]) -> None:
    first, second = samples(whole(make_evaluation()))
    assert first.prompt == "Once"
    assert first.texts[0] == ("dense", "the same start", "")
    assert first.texts[1] == ("w8", "the same ", "end")
    assert second.texts[1][1:] == ("x", "")


def test_the_page_has_them(
    make_report: Callable[..., Report], make_evaluation: Callable[..., Evaluation]
) -> None:
    evaluation = whole(make_evaluation())
    text = render_report(make_report(), [evaluation], name="mine")
    assert "the same <em>end</em>" in text
    assert seed_sentences(evaluation)[0] in text
    assert "On prose.txt, 16 windows" in text


def test_every_text_compares_by_itself(make_evaluation: Callable[..., Evaluation]) -> None:
    first, second = by_text(whole(make_evaluation()))
    assert first.text == "held-out.txt"
    assert (second.text, second.windows) == ("prose.txt", 16)
    assert [row.kl for row in second.rows] == [None, 0.25, 0.5, 0.75]
    assert second.candidates[0].bytes_on_disk == 13_000_000
