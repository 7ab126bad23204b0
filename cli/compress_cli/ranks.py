"""The processes that `torchrun` starts with one command: the first does the run, the others solve what it sends them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from compress_cli import library
from compress_cli.failures import USER_ERROR
from compress_cli.status import results_follow


@contextmanager
def leading(device: str) -> Iterator[bool]:
    """Whether this process does the run; in any other all its work is done by then.

    Args:
        device: where weights are solved.

    Raises:
        UserError: ranks that differ or cannot be reached; only the first says so.
    """
    with together() as ranks:
        if ranks is None:
            yield True
        elif ranks.rank == 0:
            try:
                yield True
            finally:
                library.release(ranks)
        else:
            library.serve_orders(ranks, device)
            yield False


@contextmanager
def together() -> Iterator[library.Ranks | None]:
    """This process among those of its job, which all run the same command; None where it is alone.

    Raises:
        UserError: ranks that differ or cannot be reached; only the first says so.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or "RANK" not in os.environ:
        yield None
        return
    first = os.environ["RANK"] == "0"
    if not first:
        results_follow()
    try:
        same = {
            "the command": shlex.join(sys.argv[1:]),
            **library.versions(),
            "compress's code": library.own_code(),
        }
        with library.joined(same) as ranks:
            yield ranks
    except library.RanksApart as error:
        if first:
            raise
        raise typer.Exit(USER_ERROR) from error
