"""What README and the pages of tasks tell people to type runs, on the embedded model and little text.

Python blocks marked ``py`` in place of ``python`` need what the tests do not install, and are not run.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from compress_cli.main import app
from typer.testing import CliRunner

import compress
from compress.assets import embedded_model, embedded_text
from compress.verification import fresh_process

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "tasks").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SMALLER = {
    "run": ["--samples", "1", "--length", "16", "--overwrite", "--quiet"],
    "eval": ["--limit", "1", "--no-speed"],
    "bench": ["--new-tokens", "2", "--repeats", "1", "--prompt-length", "4"],
    "generate": ["--max-new-tokens", "2"],
}
"""Command → options that keep it short."""
NOT_RUN = {
    "hellaswag": "its data comes from the hub",
    "push": "uploads to the hub",
    "--push-to-hub": "uploads to the hub",
    "serve": "ends by Ctrl-C alone; tests/cli/test_serve.py has it",
    "bench": "two processes that import torch; tests/cli/test_bench.py has it",
}
"""A word of a command that is not run → why."""


def blocks(page: Path, *languages: str) -> list[str]:
    return [
        text for language, text in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages
    ]


def commands() -> list[list[str]]:
    """The arguments of the commands of the pages, in their order; of those that differ in values alone the first."""
    found: dict[tuple[str, ...], list[str]] = {}
    for page in PAGES:
        lines = [
            line for text in blocks(page, "sh") for line in text.splitlines() if line.startswith("compress ")
        ]
        for line in lines:
            words = shlex.split(line.partition(">")[0], comments=True)[1:]
            options = sorted(word for word in words if word.startswith("-"))
            # What one command saves another may read.
            saved = [words[place + 1] for place, word in enumerate(words) if word in ("--save", "-o")]
            found.setdefault((words[0], *options, *saved), words)
    return list(found.values())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that people are in: a model, an output, a text to calibrate on and one to judge by."""
    folder = tmp_path_factory.mktemp("snippets")
    (folder / "MODEL").symlink_to(embedded_model())
    (folder / "examples").symlink_to(ROOT / "examples")
    text = embedded_text("heldout").read_text(encoding="utf-8")
    (folder / "notes.txt").write_text(text[:20_000], encoding="utf-8")
    (folder / "held-out.txt").write_text(text[:20_000], encoding="utf-8")
    compress.compress("embedded", "w4-rtn", folder / "OUT")
    figures = compress.evaluate("embedded", folder / "OUT", text="embedded", length=64, limit=1, speed=False)
    figures.save(folder / "figures.json")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_runs(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if any(word in NOT_RUN for word in words):
        return
    monkeypatch.setattr(fresh_process, "LARGEST", 0)
    if "--budget" in words:  # the model fits as it is and is copied: no output that can be verified
        words = ["OUT-copy" if word == "OUT" else word for word in words]
    # Of an option that is given twice the last counts.
    done = CliRunner().invoke(app, [*words, *SMALLER.get(words[0], [])])
    assert done.exit_code == 0, f"{done.stderr}\n{done.exception!r}"


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "code",
    [text for page in PAGES for text in blocks(page, "python")],
    ids=lambda code: code.split("\n")[0][:60],
)
def test_every_python_block_runs(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "import peft" in code or "from peft" in code:
        pytest.importorskip("peft")
    smaller = code.replace('"w4-gptq", "OUT", data', '"w4-gptq", "OUT-gptq", samples=2, length=32, data')
    smaller = smaller.replace('verify("OUT", "MODEL")', 'verify("OUT-gptq", "MODEL")').replace(
        "length=2048", "length=64, limit=2, speed=False"
    )
    exec(compile(smaller, "snippet", "exec"), {"__name__": "snippet"})


def test_what_is_not_run_is_in_the_pages() -> None:
    words = {word for line in commands() for word in line}
    assert set(NOT_RUN) <= words
