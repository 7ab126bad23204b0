"""Whatever a person can mend ends in one sentence on stderr and the right exit status."""

from __future__ import annotations

import errno

import pytest
import torch
import typer
from compress_cli.failures import STOPPED_RUN, explained

from compress.errors import UserError

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


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EIO, "broken disk"), KeyError("x")])
def test_bugs_are_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error)), explained(STOPPED_RUN):
        raise error
