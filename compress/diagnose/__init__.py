"""Diagnosis of a model before or after compression: what its weights and activations are like, and what follows from that."""

from __future__ import annotations

from .base import Finding
from .diagnosis import DIAGNOSIS, Diagnosis
from .run import ENTRIES, DiagnosisSettings, diagnose

__all__ = ["DIAGNOSIS", "ENTRIES", "Diagnosis", "DiagnosisSettings", "Finding", "diagnose"]
