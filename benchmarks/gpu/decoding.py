"""A random Llama of about a billion weights on the device: tokens per second, and wall time of recipes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.runs import command
from benchmarks.gpu.work import Item, Request
from benchmarks.speed.random_models import Shape, write_model
from compress.assets import embedded_model

BILLION = Shape(hidden=2048, ffn=5632, heads=32, blocks=18, vocabulary=16384)
TINY = Shape(hidden=128, ffn=256, heads=4, blocks=2, vocabulary=16384)
RECIPES = ("w4-rtn", "w4-gptq", "w8a8", "sparse24-w4-awp", "nvfp4a16")
QUICK_RECIPES = ("w4-rtn",)
SECONDS, PROCESSES = 100, 1


def items(request: Request) -> list[Item]:
    """The model, its own speed, then each recipe with its speed."""
    recipes = QUICK_RECIPES if request.quick else RECIPES
    every = [Item("model", partial(_model, request)), Item("bf16", partial(_speed, "dense", request))]
    return every + [Item(name, partial(_compressed, name, request)) for name in recipes]


def _folder(name: str, request: Request) -> Path:
    return Path(request.folder) / f"decoding-{name}"


def _model(request: Request) -> dict[str, Any]:
    size = write_model(_folder("dense", request), TINY if request.quick else BILLION, embedded_model())
    return {"bytes": size}


def _speed(name: str, request: Request) -> dict[str, Any]:
    sizes = ("--prompt-length", "512", "--new-tokens", "64", "--repeats", "2")
    answer = command("bench", str(_folder(name, request)), *sizes, "--json", "--device", request.device)
    if "error" in answer:
        return {"bench": answer}
    figures = answer["answer"]["figures"][0]
    kept = ("prefill", "decode", "load_seconds", "memory_bytes", "peak_bytes", "device")
    return {"bench": {key: figures[key] for key in kept} | {"seconds": answer["seconds"]}}


def _compressed(name: str, request: Request) -> dict[str, Any]:
    """Wall time of a run with 64 windows of 512 tokens, and the speed of its output."""
    options = (
        "--samples",
        "4" if request.quick else "64",
        "--length",
        "512",
        "--json",
        "--quiet",
        "--overwrite",
        "--no-fresh-process",
    )
    dense, out = str(_folder("dense", request)), str(_folder(name, request))
    answer = command("run", dense, "-r", name, "-o", out, *options, "--device", request.device)
    if "error" in answer:
        return {"run": answer}
    steps = {step["name"]: round(step["seconds"], 1) for step in answer["answer"]["report"]["steps"]}
    return {"run": {"seconds": answer["seconds"], "steps": steps}, **_speed(name, request)}


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Lines for people."""
    lines = []
    for row in rows:
        parts = []
        if "error" in row:
            parts.append(f"{row['error']} {' / '.join(row.get('trace', [])[-3:])}")
        for step in ("run", "bench"):
            found = row.get(step)
            if found is None:
                continue
            if "error" in found:
                parts.append(f"FAILED {step}: {' / '.join(found['trace'][-8:])[-800:]}")
            elif step == "run":
                parts.append(f"run {found['seconds']:.0f}s {found['steps']}")
            else:
                parts.append(
                    f"prefill {found['prefill']:.0f} decode {found['decode']:.1f} tokens/s, "
                    f"{found['memory_bytes'] / 1e6:.0f} MB, loaded in {found['load_seconds']:.1f}s"
                )
        lines.append(f"{row['name']:18} {'; '.join(parts) or row.get('seconds')}")
    return lines
