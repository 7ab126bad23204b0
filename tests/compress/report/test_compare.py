from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.errors import UserError
from compress.evaluation import CheckpointFigures, Evaluation
from compress.report import Machine, Report
from compress.report.compare import Output, compare, noise_floors
from compress.report.compare_page import headline, losses, recipes, render_comparison, write_comparison

Save = Callable[..., Path]


@pytest.fixture
def save(make_report: Callable[..., Report], tmp_path: Path) -> Save:
    def saved(name: str, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        make_report(**changes).save(folder / "compress.json")
        return folder

    return saved


@pytest.fixture
def folders(save: Save) -> list[Path]:
    return [save("mine"), save("w8", recipe={"name": "w8", "steps": [{"quantize": {"bits": 8}}]}), save("w2")]


def test_outputs_are_measured_by_their_path_or_name(
    folders: list[Path], make_evaluation: Callable[..., Evaluation]
) -> None:
    found = compare(folders, [make_evaluation()])
    assert [output.name for output in found.outputs] == ["mine", "w8", "w2"]
    (measured,) = found.measured
    assert {name: row.kl for name, row in measured.rows.items()} == {
        "mine": 0.0029,
        "w8": 0.0001,
        "w2": 0.062,
    }
    assert found.warnings == ()


def test_a_path_goes_before_a_name(
    save: Save, make_evaluation: Callable[..., Evaluation], make_row: Callable[..., CheckpointFigures]
) -> None:
    folders = [save("a/out"), save("b/out")]
    rows = (make_row("one", 1, 0.5, path=str(folders[1])), make_row("two", 1, 0.7, path="gone/out"))
    found = compare(folders, [dataclasses.replace(make_evaluation(), candidates=rows)])
    assert [output.name for output in found.outputs] == ["a/out", "b/out"]
    assert {name: row.kl for name, row in found.measured[0].rows.items()} == {"b/out": 0.5}


def test_an_evaluation_in_a_folder_is_found(
    folders: list[Path], make_evaluation: Callable[..., Evaluation]
) -> None:
    make_evaluation().save(folders[1] / "evaluation.json")
    assert set(compare(folders).measured[0].rows) == {"mine", "w8", "w2"}


def test_other_windows_do_not_compare(
    folders: list[Path], make_evaluation: Callable[..., Evaluation]
) -> None:
    evaluation = make_evaluation()
    most = dataclasses.replace(evaluation, candidates=evaluation.candidates[:2])
    rest = dataclasses.replace(evaluation, candidates=evaluation.candidates[2:], windows=7)
    found = compare(folders, [rest, most])
    assert [set(one.rows) for one in found.measured] == [{"w8", "mine"}, {"w2"}]
    assert "w2 was not measured at a context of 256 tokens, on the first 80" in found.warnings[0]
    assert "does not compare: w2 at a context of 256 tokens, on the first 7" in found.warnings[0]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"parameters": 5}, "parameters 5"),
        ({"architecture": "OtherForCausalLM"}, "OtherForCausalLM"),
        ({"blocks": 7}, "blocks 7"),
        ({"name": "another"}, "another"),
    ],
)
def test_outputs_of_different_models_are_refused(
    save: Save, make_report: Callable[..., Report], changes: dict[str, Any], word: str
) -> None:
    source = make_report().source.model_copy(update=changes)
    with pytest.raises(UserError, match=f"{word}.*compare outputs of one model") as raised:
        compare([save("a"), save("b", source=source)])
    assert "a was made from a-llama" in str(raised.value)


def test_a_renamed_source_is_known_by_what_was_kept(save: Save, make_report: Callable[..., Report]) -> None:
    renamed = make_report().source.model_copy(update={"name": "moved"})
    kept = {"model.embed_tokens.weight": "1" * 64}
    found = compare([save("a", tensors=kept), save("b", source=renamed, tensors=kept)])
    assert "The source of a is called a-llama and that of b moved" in found.warnings[1]
    other = {"model.embed_tokens.weight": "2" * 64}
    with pytest.raises(UserError, match="one model"):
        compare([save("c", tensors=kept), save("d", source=renamed, tensors=other)])


def test_differences_that_mislead_are_said(
    save: Save, make_report: Callable[..., Report], make_evaluation: Callable[..., Evaluation]
) -> None:
    text = make_report().calibration
    assert text is not None
    kept = [{"model.embed_tokens.weight": digit * 64} for digit in "12"]
    folders = [
        save("mine", tensors=kept[0]),
        save(
            "w8",
            tensors=kept[1],
            calibration=text.model_copy(update={"data": "notes.txt"}),
            machine=Machine(device="cuda", threads=1),
        ),
    ]
    evaluation = make_evaluation()
    rows = tuple(
        dataclasses.replace(row, kl=kl, kl_error=0.001)
        for row, kl in zip(evaluation.candidates, (0.02, 0.021), strict=False)
    )
    warnings = " ".join(compare(folders, [dataclasses.replace(evaluation, candidates=rows)]).warnings)
    for expected in (
        "made from different weights",
        "standard error of their KL (0.0010 against 0.0014)",
        "w8: notes.txt",
        "times do not compare",
    ):
        assert expected in warnings, expected


def test_one_output_twice_and_no_output(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="named twice"):
        compare([folders[0], folders[0]])
    with pytest.raises(UserError, match="cannot be read"):
        compare([folders[0], tmp_path])


def test_seeds_of_one_recipe_are_the_noise_floor(
    make_report: Callable[..., Report], make_row: Callable[..., CheckpointFigures]
) -> None:
    outputs = [Output(str(seed), make_report(seed=seed)) for seed in range(3)]
    outputs.append(Output("w8", make_report(recipe={"name": "w8"})))
    rows = {name: make_row(name, 1, kl) for name, kl in (("0", 0.1), ("1", 0.2), ("2", 0.3), ("w8", 9.0))}
    (floor,) = noise_floors(outputs, rows)
    assert (floor.recipe, floor.names) == ("w4-gptq", ("0", "1", "2"))
    assert (floor.kl, floor.deviation) == (pytest.approx(0.2), pytest.approx(0.1))
    assert noise_floors(outputs[:1], rows) == ()


def test_the_headline_has_a_line_for_every_output(
    folders: list[Path], make_evaluation: Callable[..., Evaluation]
) -> None:
    evaluation = make_evaluation()
    found = compare(folders, [dataclasses.replace(evaluation, candidates=evaluation.candidates[:2])])
    table = headline(found.outputs, found.measured[0])
    assert [row.name for row in table.rows] == ["dense", "mine", "w8", "w2"]
    kl = table.columns.index("KL, nats")
    assert [row.cells[kl].value for row in table.rows] == [None, 0.0029, 0.0001, None]
    assert all(len(row.cells) == len(table.columns) for row in table.rows)


def test_losses_share_a_scale_and_say_where_metrics_differ(make_report: Callable[..., Report]) -> None:
    first = make_report()
    bigger = tuple(w.model_copy(update={"error": 1.0, "distance": 0.5}) for w in first.weights)
    other = make_report(weights=bigger, recipe={"name": "b", "steps": [{"score": {"name": "fisher"}}]})
    view = losses([Output("a", first), Output("b", other)])
    assert view is not None
    assert not view.alike
    assert view.shades[1] == "100%"
    assert 'class="q7"' in view.maps[1][1]
    assert 'class="q7"' not in view.maps[0][1]
    assert [cell.text for cell in view.table.rows[0].cells[2:]] == ["100%", "50%"]
    assert losses([Output("a", make_report(weights=()))] * 2) is None


def test_lines_of_recipes_that_differ_stand_out(make_report: Callable[..., Report]) -> None:
    other = make_report(recipe={"name": "w4-gptq", "steps": [{"quantize": {"bits": 3}}]})
    views = recipes([Output("a", make_report()), Output("b", other)])
    assert ("name: w4-gptq", True) in views[0].lines
    assert ("- quantize: {bits: 3}", False) in views[1].lines


def test_the_page_escapes_and_is_only_written_over_its_like(save: Save, tmp_path: Path) -> None:
    evil = "<img src=x>"
    comparison = compare([save("a", recipe={"name": evil}), save("b", notes=(evil,))])
    assert "<img" not in render_comparison(comparison)
    page = tmp_path / "page.html"
    write_comparison(comparison, page)
    write_comparison(comparison, page)
    page.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="not written by compress"):
        write_comparison(comparison, page)
