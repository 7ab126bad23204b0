"""Made-up reports and evaluations."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from compress.evaluation import CheckpointFigures, Evaluation, TaskFigure
from compress.report import (
    BlockFigures,
    Bytes,
    Calibration,
    FormatChoice,
    Machine,
    Report,
    Shard,
    Skipped,
    SourceModel,
    StepFigures,
    WeightFigures,
)

SHAPES = {
    "self_attn.q_proj": (384, 384),
    "self_attn.k_proj": (128, 384),
    "self_attn.v_proj": (128, 384),
    "self_attn.o_proj": (384, 384),
    "mlp.gate_proj": (1024, 384),
    "mlp.up_proj": (1024, 384),
    "mlp.down_proj": (384, 1024),
}


def a_report(count: int = 3, suffix: str = "", **changes: Any) -> Report:
    """A report on a Llama; `suffix` ends every name in it, and `changes` replace fields."""
    draw = random.Random(0)
    weights = tuple(
        WeightFigures(
            name=f"model.layers.{block}.{role}{suffix}",
            block=block,
            kind="linear",
            shape=shape,
            structure="int4 group 128",
            solver="gptq",
            bits_per_weight=4.125,
            bytes_before=2 * shape[0] * shape[1],
            bytes_after=shape[0] * shape[1] * 33 // 64,
            error=(error := 0.001 * (1 + 9 * draw.random())),
            error_nearest=error * 2.5,
            damping=0.01,
            tokens=32768,
        )
        for block in range(count)
        for role, shape in SHAPES.items()
    )
    size = sum(weight.bytes_after for weight in weights) + 6_300_000
    fields: dict[str, Any] = {
        "versions": {"compress-llm": "0.1.0", "torch": "2.13.0"},
        "recipe": {
            "name": f"w4-gptq{suffix}",
            "steps": [{"quantize": {"bits": 4}, "solver": [{"name": "gptq"}]}],
        },
        "seed": 0,
        "source": SourceModel(
            name=f"a-llama{suffix}",
            architecture="LlamaForCausalLM",
            parameters=12_585_600,
            blocks=count,
            dtype="bfloat16",
        ),
        "format": FormatChoice(
            name="compressed-tensors", reason=f"it fits.{suffix}", servers=("transformers", "vllm")
        ),
        "bytes": Bytes(source=25_181_944, planned=size, actual=size),
        "shards": (Shard(file=f"model.safetensors{suffix}", sha256="ab" * 32, bytes=size),),
        "weights": weights,
        "skipped": (
            Skipped(
                name=f"model.embed_tokens{suffix}",
                reason=f"not targeted{suffix}",
                shape=(8192, 384),
                bytes=6_291_456,
            ),
            Skipped(name="model.norm_a", reason="too small", bytes=10),
            Skipped(name="model.norm_b", reason="too small", bytes=10),
        ),
        "calibration": Calibration(data=f"embedded{suffix}", samples=128, length=256, tokens=32768),
        "notes": (f"A note.{suffix}",),
        "machine": Machine(device="cpu", threads=4, system="Linux"),
        "steps": tuple(
            StepFigures(name=name, seconds=seconds, peak_bytes=peak)
            for name, seconds, peak in (("load", 0.2, 40_000_000), ("solve", 6.8, 190_000_000))
        ),
        "blocks": tuple(
            BlockFigures(index=block, seconds=2.5, peak_bytes=220_000_000, spans=some_spans(2.5 * block))
            for block in range(count)
        ),
        "seconds": 14.9,
        "peak_bytes": 231_000_000,
        "planned_peak_bytes": 240_000_000,
    }
    return Report(**(fields | changes))


def some_spans(start: float) -> dict[str, tuple[float, float]]:
    """Of a block that begins at a time: it was read before, and is put on disk after it was solved."""
    ahead = (0.0, 0.5) if start == 0 else (start - 2.3, start - 2.0)
    return {
        "read ahead": ahead,
        "load": (start + 0.5, start + 0.7),
        "solve": (start + 0.7, start + 2.9),
        "write behind": (start + 2.9, start + 3.4),
    }


def a_row(name: str, nbytes: int, kl: float | None = None, **changes: Any) -> CheckpointFigures:
    """Figures of one checkpoint."""
    fields: dict[str, Any] = {
        "path": f"out/{name}",
        "perplexity": 24.79,
        "kl": kl,
        "top1": None if kl is None else 1 - kl,
        "bytes_on_disk": nbytes,
        "bits_per_weight": nbytes / 1.5e6,
        "load_seconds": 0.3,
        "tasks": (TaskFigure("tiny", "acc", 0.5, 0.1, 40),),
    }
    return CheckpointFigures(name=name, **(fields | changes))


def an_evaluation(suffix: str = "") -> Evaluation:
    """Three recipes against a dense model; the reports' own folder is called "mine"."""
    return Evaluation(
        reference=a_row(f"dense{suffix}", 25_181_944),
        candidates=(
            a_row(f"w8{suffix}", 13_000_000, 0.0001),
            a_row("mine", 12_000_000, 0.0029),
            a_row("w2", 8_000_000, 0.062, notes=(f"rough{suffix}",)),
        ),
        text=f"held-out.txt{suffix}",
        length=256,
        windows=80,
        dtype="fp32",
        device="cpu",
        threads=1,
    )


@pytest.fixture
def make_report() -> Callable[..., Report]:
    return a_report


@pytest.fixture
def make_row() -> Callable[..., CheckpointFigures]:
    return a_row


@pytest.fixture
def make_evaluation() -> Callable[..., Evaluation]:
    return an_evaluation
