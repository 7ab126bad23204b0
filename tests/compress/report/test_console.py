from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console

from compress.report import Report, print_report


def printed(report: Report) -> str:
    out = io.StringIO()
    print_report(report, Console(file=out, width=120, highlight=False))
    return out.getvalue()


def test_the_terminal_says_what_was_done(make_report: Callable[..., Report]) -> None:
    text = printed(make_report())
    for expected in (
        "a-llama",
        "w4-gptq",
        "25.2 MB",
        "bytes as planned",
        "q_proj",
        "int4 group 128",
        "6.8 s",
        "too small",
        "Timeline of the blocks: 0 ms waited for the disk",
        "write behind",
    ):
        assert expected in text, expected


def test_markup_in_names_is_only_text(make_report: Callable[..., Report]) -> None:
    assert "[red]x[/]" in printed(make_report(suffix="[red]x[/]"))


def test_what_is_missing_is_left_out(make_report: Callable[..., Report]) -> None:
    text = printed(make_report(weights=(), steps=(), skipped=(), notes=(), seconds=None, peak_bytes=None))
    assert "By kind" not in text
    assert "Time by step" not in text
    assert "Timeline" not in printed(make_report(blocks=()))
    assert "Not compressed" not in text
