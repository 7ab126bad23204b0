"""Whatever a person can mend ends in one sentence on stderr and the right exit status."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
import typer
from compress_cli.failures import STOPPED_RUN, explained, one_sentence
from compress_cli.main import app
from compress_cli.messages import LONGEST
from compress_cli.signals import stopped_by_signals
from safetensors import SafetensorError
from typer.testing import CliRunner

from compress.errors import UserError

LONG = "x" * 3000
RUST = "Error while serializing: I/O error: No space left on device (os error 28)"
OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (UserError("There is no such folder."), 2, "There is no such folder."),
        (KeyboardInterrupt(), 130, "the same command"),
        (MemoryError(), 2, "--samples"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "--samples"),
        (RuntimeError(OUT_OF_MEMORY), 2, "--samples"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "disk is full"),
        (OSError(errno.EFBIG, "File too large"), 2, "disk is full"),
        (SafetensorError(RUST), 2, "disk is full"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300), 2, "File name too long: aaa"),
        (PermissionError(errno.EACCES, "Permission denied", "secret"), 2, "Permission denied: secret."),
    ],
)
def test_one_sentence(
    error: BaseException, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, explained(STOPPED_RUN):
        raise error
    assert ended.value.exit_code == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a bug"), OSError(errno.EIO, "broken disk"), KeyError("x"), ValueError("x\n" * 9000)],
)
def test_a_fault_of_ours_is_one_sentence_with_the_file_of_its_traceback(
    error: Exception, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(typer.Exit) as ended, explained(STOPPED_RUN):
        raise error
    assert ended.value.exit_code == 1
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    assert len(sentence) < 500
    (file,) = tmp_path.iterdir()
    assert str(file) in sentence
    text = file.read_text()
    assert "Traceback" in text
    assert f"{type(error).__name__}" in text
    assert "raise error" in text


def test_without_a_place_for_the_traceback_the_sentence_stands_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(typer.Exit), explained(STOPPED_RUN):
        raise KeyError("x")
    assert "fault of compress (KeyError: 'x')" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [typer.Exit(3), typer.Abort(), typer.BadParameter("wrong"), SystemExit(4), BrokenPipeError()]
)
def test_what_the_command_line_itself_raises_passes(error: BaseException) -> None:
    with pytest.raises(type(error)), explained(STOPPED_RUN):
        raise error


def test_a_panic_of_a_library_in_rust_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    class PanicException(BaseException):
        """As pyo3 has it: outside of Exception."""

    with pytest.raises(typer.Exit), explained(STOPPED_RUN):
        raise PanicException("called unwrap on None")
    assert "PanicException" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("as it is", "as it is"),
        ("two\nlines\t\x1b[31mred\0", "two lines [31mred"),
        ("a" * 600 + "b" * 600, "a" * 498 + " … " + "b" * 498),
    ],
)
def test_sentences_are_one_line_of_bounded_length(text: str, sentence: str) -> None:
    assert one_sentence(text) == sentence
    assert len(sentence) <= LONGEST


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_command_as_ctrl_c_does(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    outer = signal.signal(number, signal.SIG_DFL)  # under nohup it would be ignored
    before, tidied = signal.getsignal(number), []
    with pytest.raises(typer.Exit) as ended, explained(STOPPED_RUN), stopped_by_signals():
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            tidied.append(True)
    assert ended.value.exit_code == 128 + number
    assert tidied
    assert "the same command" in capsys.readouterr().err
    assert signal.getsignal(number) is before
    signal.signal(number, outer)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_of_the_main_thread_signals_are_left_alone() -> None:
    seen = []

    def work() -> None:
        with stopped_by_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_usage_error_quotes_no_more_than_a_line_or_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.BadParameter) as raised, explained(STOPPED_RUN):
        raise typer.BadParameter(f"'{'x' * 5000}' is not one of 'a', 'b'.")
    assert len(raised.value.message) <= 300
    assert raised.value.message.endswith("is not one of 'a', 'b'.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "ggfu"], "'dense'; did you mean 'gguf'?"),
        (["--dtype", "float99"], "'float99' is not one of 'auto', 'bf16', 'fp16', 'fp32'"),
        (["--samples", "many"], "should be a valid integer"),
    ],
)
def test_a_wrong_value_of_an_option_is_told_in_words_for_people(arguments: list[str], said: str) -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["plan", "embedded", "-r", "w8", *arguments])
    words = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 2
    assert said in words
    assert "Value error" not in words
    assert "unable to parse" not in words


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", LONG, "-r", "w4-rtn"],
        ["plan", "embedded", "-r", LONG],
        ["run", "embedded", "-r", "w4-gptq", "-o", "new", "--data", LONG],
        ["inspect", LONG],
        ["eval", LONG],
        ["eval", "embedded", "--tasks", "a", "--include-path", LONG],
        ["verify", "embedded", "--source", LONG],
    ],
)
def test_a_name_that_is_too_long_is_the_persons_and_cut_short(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert len(result.output) < 2 * LONGEST


def test_a_note_of_an_interrupt_says_more(capsys: pytest.CaptureFixture[str]) -> None:
    for notes, said in (((), "Stopped."), (("Stopped; the healing at step 5 is kept.",), "step 5 is kept.")):
        stopped = KeyboardInterrupt()
        for note in notes:
            stopped.add_note(note)
        with pytest.raises(typer.Exit), explained("Stopped."):
            raise stopped
        assert capsys.readouterr().err.strip().endswith(said)
