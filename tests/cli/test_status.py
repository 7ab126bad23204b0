"""The status shows what a command does: a line on a terminal, lines elsewhere, and what is logged with -v."""

from __future__ import annotations

import io
import logging
import threading

import pytest
from compress_cli import progress
from compress_cli import status as module
from compress_cli.status import Status, current_status, results_follow, status_shown

LOG = logging.getLogger("compress.test")


class Stream(io.StringIO):
    """Collects what is written, and knows when a text has come."""

    def __init__(self, terminal: bool = False) -> None:
        super().__init__()
        self._terminal, self.waits = terminal, dict[str, threading.Event]()

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        written = super().write(text)
        for words, event in list(self.waits.items()):
            if words in self.getvalue():
                event.set()
        return written

    def wait_for(self, words: str) -> None:
        event = self.waits.setdefault(words, threading.Event())
        if words not in self.getvalue():
            assert event.wait(30), f"no {words!r} in {self.getvalue()!r}"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch, no_status: None) -> None:
    monkeypatch.setattr(module, "FIRST", 0.0)
    monkeypatch.setattr(module, "_TICK", 0.005)


def test_elsewhere_a_phase_that_lasts_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    with Status(stream) as status:
        stream.wait_for("starting …\n")
        status.phase("planning")
        stream.wait_for("planning …\n")
    assert stream.getvalue() == "starting …\nplanning …\n"
    monkeypatch.setattr(module, "AGAIN", 0.01)
    again = Stream()
    with Status(again):
        again.wait_for("starting … 0 s\n")


def test_the_import_of_torch_is_named_once_it_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(module.sys.modules, "torch")
    stream = Stream()
    status = Status(stream)
    status._sign(status._signed)
    monkeypatch.setitem(module.sys.modules, "torch", pytest)
    status._sign(status._signed + 1)
    assert stream.getvalue() == "starting …\nimporting torch and transformers …\n"


def test_on_a_terminal_the_line_is_taken_away() -> None:
    stream = Stream(terminal=True)
    with Status(stream) as status:
        stream.wait_for("starting … 0 s")
        status.hold()
        held = stream.getvalue()
        assert held.endswith("\r\x1b[2K")
        status.phase("solving")
        status.resume()
        stream.wait_for("solving … 0 s")
    assert stream.getvalue().endswith("\r\x1b[2K")
    assert "\n" not in stream.getvalue()


def test_quiet_and_results_show_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST", 1e9)
    stream = Stream()
    with Status(stream, quiet=True) as status:
        monkeypatch.setattr(module, "FIRST", 0.0)
        status._sign_unless_held()
    assert stream.getvalue() == ""
    with status_shown() as status:
        assert current_status() is status
        results_follow()
        assert status._held
    assert current_status() is None
    results_follow()


def test_a_phase_is_what_the_library_logs() -> None:
    stream = Stream()
    with Status(stream):
        LOG.info("hashing %s", "model.safetensors")
        stream.wait_for("hashing model.safetensors …\n")
    before = stream.getvalue()
    LOG.info("after it has ended")
    assert stream.getvalue() == before


@pytest.mark.parametrize(("verbosity", "printed"), [(0, ["w"]), (1, ["i", "w"]), (2, ["d", "i", "w"])])
def test_what_is_printed_with_v(verbosity: int, printed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST", 1e9)
    stream = Stream()
    with Status(stream, verbosity):
        LOG.debug("d")
        LOG.info("i")
        LOG.warning("w")
    lines = stream.getvalue().split("\n")[:-1]
    assert [line.rpartition(" ")[2] for line in lines] == printed
    assert all("compress.test: " in line for line in lines) == (verbosity > 0)


def test_levels_are_put_back() -> None:
    logger = logging.getLogger("compress")
    before = logger.level, list(logger.handlers)
    with Status(Stream(), 2):
        assert logger.level == logging.DEBUG
    assert (logger.level, list(logger.handlers)) == before


def test_phases_that_are_short_are_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST", 1.0)
    monkeypatch.setattr(module, "AGAIN", 10.0)
    stream = Stream()
    status = Status(stream)
    clock = status._signed
    monkeypatch.setattr(module.time, "monotonic", lambda: clock)
    for step in range(1, 50):
        clock += 0.5
        status.phase(f"window {step}")
        clock += 0.01
        status._sign(clock)
    told = [int(line.split()[1]) for line in stream.getvalue().splitlines()]
    assert told == [2, 22, 42]


def test_bars_give_way_to_lines_with_v(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.Console, "is_terminal", True)
    with status_shown(0):
        assert isinstance(progress.listener(quiet=False), progress.Terminal)
    with status_shown(1):
        assert isinstance(progress.listener(quiet=False), progress.Lines)
