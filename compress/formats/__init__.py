"""The forms in which a compressed checkpoint is written."""

from __future__ import annotations

from .auto import choose
from .base import Exporter, Facts, Planned

__all__ = ["Exporter", "Facts", "Planned", "choose"]
