"""Messages of libraries are short and hold no control characters, whatever the file says that they quote."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from compress_cli.messages import LONGEST_OF_LIBRARIES, short_messages, shortened


def logged(message: str, *args: object) -> str:
    """What a logger with a handler of its own prints."""
    stream, logger = io.StringIO(), logging.Logger("library")
    logger.addHandler(logging.StreamHandler(stream))
    logger.warning(message, *args)
    return stream.getvalue()


def test_a_long_record_is_shortened_inside_and_only_there() -> None:
    with short_messages():
        text = logged("keys: %s", "x" * 100_000)
    assert text.startswith("keys: x")
    assert len(text) <= LONGEST_OF_LIBRARIES + 1
    assert len(logged("keys: %s", "x" * 100_000)) > 100_000


def test_a_short_record_is_as_it_was() -> None:
    with short_messages():
        assert logged("%d of %s\nare new", 3, "ten") == "3 of ten\nare new\n"


def test_escape_sequences_do_not_reach_the_terminal() -> None:
    with short_messages():
        assert "\x1b" not in logged("key \x1b[31m")
    assert "\x1b" not in shortened("\x1b[31m")


def test_a_warning_is_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    with short_messages(), warnings.catch_warnings():
        warnings.simplefilter("always")
        text = warnings.formatwarning("x" * 100_000, UserWarning, "file.py", 3)  # type: ignore[arg-type]
    assert len(text) < LONGEST_OF_LIBRARIES + 200
    assert "UserWarning" in text
    assert len(warnings.formatwarning("x" * 9000, UserWarning, "file.py", 3)) > 9000  # type: ignore[arg-type]


def test_the_command_line_shortens_what_transformers_quotes_of_a_configuration(tmp_path: Path) -> None:
    """A long unknown key in ``rope_parameters`` is quoted in a warning of transformers."""
    script = (
        "import json, sys; from pathlib import Path; from transformers import LlamaConfig;"
        "LlamaConfig(num_hidden_layers=1, hidden_size=32, intermediate_size=32, num_attention_heads=1, vocab_size=32)"
        ".save_pretrained(sys.argv[1]); path = Path(sys.argv[1]) / 'config.json'; data = json.loads(path.read_text());"
        "data['rope_parameters']['1' * 50_000] = 1; path.write_text(json.dumps(data));"
        "sys.argv = ['compress', 'plan', sys.argv[1], '-r', 'w4-rtn'];"
        "from compress_cli.main import app; app()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert len(ended.stderr) < 3000
