"""Whether the output that an earlier run left unfinished may be gone on with, and the sentence where it may not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compress.checkpoint.differences import differences
from compress.checkpoint.journal import Recorded, is_journal, read_journal
from compress.checkpoint.output import JOURNAL, MARK, check_output, check_replaced
from compress.errors import UserError

BEGUN = "begun"
"""The journal's name for the beginning of a healing, whose steps are kept in a file of their own."""


def check_unfinished(
    out: str | Path,
    settings: Mapping[str, Any],
    *,
    source: Path,
    overwrite: bool = False,
    restart: bool = False,
) -> None:
    """Refuse, before any work, what :class:`compress.checkpoint.writer.Writer` would refuse; touches nothing.

    Args:
        out: the folder to make.
        settings: those of the run's settings that are known before its work; others are not compared.
        source: the folder of the checkpoint that is compressed.
        overwrite: whether an existing ``out`` may be replaced.
        restart: whether an unfinished output of other settings may be discarded.

    Raises:
        UserError: ``out`` exists, is in the source or around it, or there is an unfinished output of other settings.
    """
    out = Path(out).resolve()
    check_output(out, source, overwrite)
    if not (out / MARK).exists():
        check_replaced(out)
    partial = out.with_name(out.name + ".partial")
    recorded = read_journal(partial / JOURNAL)
    before = {key: recorded.settings.get(key) for key in settings}
    what = differences(before, _plain(settings))
    if recorded.entries and what and not restart:
        raise refusal(partial, (entry.block for entry in recorded.entries), what)


def what_differs(partial: Path, recorded: Recorded, fingerprint: str, settings: Mapping[str, Any]) -> str:
    """Why an unfinished output cannot be gone on with, in words; empty where nothing would be lost with it.

    Args:
        partial: its folder.
        recorded: its journal.
        fingerprint: of the new run.
        settings: of the new run.
    """
    if recorded.fingerprint is None:
        return "it is of another version of compress" if is_journal(partial / JOURNAL) else ""
    if not recorded.entries:
        return ""
    if recorded.fingerprint == fingerprint:
        return "its weight files are damaged"
    return differences(recorded.settings, _plain(settings)) or "the plan"


def refusal(partial: Path, names: Iterable[int | str], what: str) -> UserError:
    """The sentence about an unfinished output that another run began; ``names`` are those of its entries."""
    return UserError(
        f"{partial} holds an unfinished output of another run ({counted(names)} done; what differs: {what}): go on with the "
        "command that began it, choose another output, or discard it with --restart."
    )


def counted(names: Iterable[int | str]) -> str:
    """What entries of a journal stand for, ahead of ``done`` or ``kept``: ``1 block is``, ``7 blocks are``.

    Args:
        names: of the entries: numbers of blocks, and words for anything else.
    """
    names = list(names)
    blocks = sum(isinstance(name, int) for name in names)
    if blocks:
        return "1 block is" if blocks == 1 else f"{blocks} blocks are"
    return "a part of a healing is" if BEGUN in names else "what lies outside of the blocks is"


def _plain(settings: Mapping[str, Any]) -> Any:
    """As they come back from a journal."""
    return json.loads(json.dumps(settings, default=str))
