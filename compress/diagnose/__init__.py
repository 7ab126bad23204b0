"""Diagnosis of a model before or after compression: what its weights and activations are like, and what follows from that."""

from __future__ import annotations

from .base import Finding
from .run import ENTRIES, Diagnosis, DiagnosisSettings, diagnose

__all__ = ["ENTRIES", "Diagnosis", "DiagnosisSettings", "Finding", "diagnose"]
