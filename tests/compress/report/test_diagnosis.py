from __future__ import annotations

from collections.abc import Callable

from compress.diagnose import Diagnosis, Finding
from compress.report import Report, render_report
from compress.report.diagnosis import diagnosis_view

FOUND = Diagnosis(
    "a-llama",
    "/home/somebody/notes.txt",
    (
        Finding(
            "noise",
            "Noise <b>",
            ("in", "KL", "weights"),
            (("q_proj", 0.00123, 12_300), ("k", None, "n")),
            "Give & take.",
        ),
    ),
)


def test_figures_keep_three_digits_and_their_order() -> None:
    view = diagnosis_view(FOUND)
    assert view is not None
    ((table, advice),) = view.findings
    assert table.columns == ("KL", "weights")
    assert [(cell.text, cell.value) for cell in table.rows[0].cells] == [
        ("0.00123", 0.00123),
        ("12,300", 12300),
    ]
    assert [(cell.text, cell.value) for cell in table.rows[1].cells] == [("–", None), ("n", None)]
    assert advice == "Give & take."
    assert diagnosis_view(None) is None


def test_the_page_has_the_advice_and_no_folder_of_the_machine(make_report: Callable[..., Report]) -> None:
    text = render_report(make_report(), [], name="mine", diagnosis=FOUND)
    assert "<b>Noise &lt;b&gt;.</b> Give &amp; take." in text
    assert "on notes.txt" in text
    assert "somebody" not in text
    assert "Diagnosis" not in render_report(make_report(), [], name="mine")
