"""The forms in which a compressed checkpoint is written."""

from __future__ import annotations

from .auto import choose
from .base import Exporter, Facts, OwnFile, Planned

__all__ = ["Exporter", "Facts", "OwnFile", "Planned", "choose"]
