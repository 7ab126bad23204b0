"""Continuations of the same prompts side by side, for the terminal (`compress eval --prompts`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from compress_cli import library
from compress_cli.display import screen, table
from compress_cli.messages import printable

if TYPE_CHECKING:
    from compress.evaluation import Evaluation
    from compress.report.further import Sample

NARROWEST = 30
"""Columns of the terminal that a continuation needs to stand beside others; below that they stand under each other."""
LINES = 6
"""A continuation is cut to so many lines."""
PARTS = "‖"
LINE_END = "↵"


def show_samples(evaluation: Evaluation, console: Console | None = None) -> None:
    """Print each prompt and what every model writes on; nothing where none was asked for.

    Args:
        console: its width decides whether continuations stand beside or under each other; stdout's unless there is another.
    """
    found = library.samples(evaluation)
    if not found:
        return
    console = console or screen()
    for number, sample in enumerate(found, 1):
        _show(sample, f"Prompt {number}", console)
    console.print(
        f"{PARTS} stands where a continuation leaves the dense model's; {LINE_END} is a line end.",
        markup=False,
    )


def _show(sample: Sample, title: str, console: Console) -> None:
    room = console.width // len(sample.texts) - 3
    prompt = f"{title}: {_shortened_start(_on_a_line(sample.prompt), console.width - len(title) - 2)}"
    console.print(Text(prompt), style="bold", no_wrap=True, overflow="ellipsis")
    if room >= NARROWEST:
        columns = {_on_a_line(name): "fold" for name, _, _ in sample.texts}
        if len(columns) == len(sample.texts):  # names are unique within an evaluation
            cells = [_cell(same, rest, room * LINES) for _, same, rest in sample.texts]
            table(None, columns, [cells], console)
            return
    longest = max(len(name) for name, _, _ in sample.texts)
    room = max(NARROWEST, console.width - longest - 5)
    rows: list[Sequence[str | Text]] = [
        [_on_a_line(name), _cell(same, rest, room * LINES)] for name, same, rest in sample.texts
    ]
    table(None, {"": "left", "continuation": "fold"}, rows, console)


def _cell(same: str, rest: str, longest: int) -> Text:
    """What a model says as the dense one does, dimmed, and from where it parts; cut to ``longest`` characters."""
    same, rest = _on_a_line(same), _on_a_line(rest)
    if not rest:
        return Text(_shortened_end(same, longest))
    if len(same) + len(rest) + 1 > longest:
        same = _shortened_start(same, max(longest // 2, longest - len(rest) - 1))
        rest = _shortened_end(rest, longest - len(same) - 1)
    return Text.assemble((same, "dim"), (PARTS, "bold"), rest)


def _on_a_line(text: str) -> str:
    return printable(text.replace("\r\n", "\n").replace("\t", "    ")).replace("\n", LINE_END)


def _shortened_start(text: str, longest: int) -> str:
    return text if len(text) <= longest else "…" + text[len(text) - max(longest, 1) + 1 :]


def _shortened_end(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: max(longest, 1) - 1] + "…"
