"""Progress goes to stderr, in bars or in lines, and counts what it is told."""

from __future__ import annotations

import io

import pytest
from compress_cli import progress
from compress_cli.progress import Lines, Terminal, listener, windows_bar
from rich.console import Console

from compress.system.progress import Progress, Silent


def run_job(listener: Progress) -> None:
    listener.start(2, 4, 4000)
    for block in range(2):
        listener.block(block)
        listener.step("solving")
        for weight in ("q", "k"):
            listener.weight(f"{block}.{weight}", 1000)
    listener.note("One expert saw no token.")
    listener.finish()


def test_bars_show_blocks_weights_and_bytes() -> None:
    text = io.StringIO()
    run_job(Terminal(Console(file=text, force_terminal=True, width=160)))
    for part in ("4/4 weights", "4.00 kB of 4.00 kB", "One expert saw no token."):
        assert part in text.getvalue()


def test_lines_show_blocks_weights_bytes_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    text = io.StringIO()
    run_job(Lines(Console(file=text, width=160)))
    assert "block 2/2 · 2/4 weights · 2.00 kB of 4.00 kB · " in text.getvalue()
    assert " left\n" in text.getvalue()
    assert "note: One expert saw no token." in text.getvalue()


def test_quiet_is_silent() -> None:
    assert isinstance(listener(quiet=True), Silent)


def test_nothing_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    run_job(listener(quiet=False))
    with windows_bar(quiet=False) as windows:
        windows("dense", 1, 2)
    assert capsys.readouterr().out == ""
