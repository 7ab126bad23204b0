"""How often a text was asked: every measurement of an output is noted in its folder, beside the text's hash.

Who chooses among k outputs by one text may be off by √(2 ln k) standard errors: so far the best of k equal outputs stands
out by chance (a bound on the expected maximum of k normal deviates; Dwork et al., 2015, treat adaptive choices).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.checkpoint.writer import REPORT
from compress.errors import UserError
from compress.system.files import write_text

_LOG = logging.getLogger(__name__)

HOLDOUT = "holdout.json"
_MARK = '{\n "holdout_version": 1,'


def text_hash(path: Path) -> str:
    """SHA-256 of a text file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def note_asked(folder: Path, texts: Mapping[str, str]) -> None:
    """Count a measurement of an output on each of the texts.

    Args:
        folder: of the output; one that `compress run` did not write, or that cannot be written to, is left alone.
        texts: SHA-256 → name.
    """
    if not (folder / REPORT).is_file():
        return
    asked = read_asked(folder)
    for digest, name in texts.items():
        count = asked.get(digest, {}).get("asked", 0)
        asked[digest] = {"text": name, "asked": count + 1}
    whole = {"holdout_version": 1, "texts": asked}
    try:
        write_text(folder / HOLDOUT, json.dumps(whole, indent=1, ensure_ascii=False) + "\n", mark=_MARK)
    except UserError as error:
        _LOG.warning("not counted as asked: %s", error)


def read_asked(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 of a text → its name and how often the output was measured on it; empty where nothing is noted."""
    try:
        texts = json.loads((folder / HOLDOUT).read_text(encoding="utf-8"))["texts"]
        return {
            str(digest): {"text": str(one["text"]), "asked": int(one["asked"])}
            for digest, one in texts.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def optimism(outputs: int) -> float:
    """√(2 ln k): by how many standard errors the best of k equal outputs looks better than it is, at most."""
    return math.sqrt(2 * math.log(outputs)) if outputs > 1 else 0.0
