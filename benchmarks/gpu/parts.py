"""The parts, in the order in which they run."""

from __future__ import annotations

from types import ModuleType

from benchmarks.gpu import correctness, decoding, runs, timing, tuning

PARTS: dict[str, ModuleType] = {
    "correctness": correctness,
    "tuning": tuning,
    "timing": timing,
    "runs": runs,
    "decoding": decoding,
}
