"""Decoding on a CPU as one recorded step: what Python would do again for every token is done once."""

from __future__ import annotations

from .decoder import Decoder

__all__ = ["Decoder"]
