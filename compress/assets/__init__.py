"""What ships inside the package: a small trained model, its text, and the recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from compress.errors import UserError

ASSETS = Path(__file__).resolve().parent
EMBEDDED = "embedded"
"""The name by which commands and recipes ask for the embedded model or the embedded text."""
PROSE = "prose"
"""The name of the shipped English prose, a text of another domain than the shipped calibration text."""


def embedded_model() -> Path:
    """Return the folder of the embedded model, an ordinary Hugging Face checkpoint.

    Raises:
        UserError: the installation is without it.
    """
    return _existing(ASSETS / "embedded", "embedded model")


def embedded_text(part: Literal["calibration", "heldout", "prose"]) -> Path:
    """Return a file of the embedded text, UTF-8: a part to calibrate on, a part to judge by, and English prose.

    Raises:
        UserError: the installation is without it.
    """
    return _existing(ASSETS / "text" / f"{part}.txt", f"embedded {part} text")


def kernel_times_file() -> Path:
    """Return the table of measured kernels, JSON; `python -m benchmarks.kernel_times` writes it.

    Raises:
        UserError: the installation is without it.
    """
    return _existing(ASSETS / "kernel_times.json", "table of kernel times")


def served_file() -> Path:
    """Return the table of recipes that servers were measured to read, JSON; `python -m tools.readme` writes it.

    Raises:
        UserError: the installation is without it.
    """
    return _existing(ASSETS / "served.json", "table of servers")


def recipes_dir() -> Path:
    """Return the folder of the shipped recipes, `<name>.yaml` each.

    A wheel carries a copy among the assets; in a checkout, and so in an editable installation, they stand
    at the top of the repository.

    Raises:
        UserError: the installation is without them.
    """
    packaged = ASSETS / "recipes"
    return packaged if packaged.is_dir() else _existing(ASSETS.parents[1] / "recipes", "folder of recipes")


def _existing(path: Path, what: str) -> Path:
    if not path.exists():
        raise UserError(f"This installation has no {what} ({path} is missing); install compress-llm again.")
    return path
