"""End to end: run, eval, generate, verify and bench on the device, with the embedded model, beside a run on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.work import TRACE_LINES, Item, Request

RECIPES = (
    "w4-rtn",
    "w4-gptq",
    "w2-gptq",
    "sparse50-awp",
    "sparse24-awp",
    "nf4",
    "fp8-dynamic",
    "mxfp4a16",
    "nvfp4",
    "w8a8",
    "lowrank80-svdllm",
    "q4_k_m",
    "best-w3",
    "prune-width75",
    "w3-eora",
    "sparse24-w4-awp",
    "w4-kv8",
)
QUICK_RECIPES = ("w4-gptq", "w8a8")
SECONDS, PROCESSES = 170, 15
TOKENS = ("--samples", "16", "--length", "256")
EVALUATED = ("--limit", "16", "--length", "256")


def items(request: Request) -> list[Item]:
    """A recipe with everything that is done with its output."""
    return [
        Item(name, partial(_recipe, name, request)) for name in (QUICK_RECIPES if request.quick else RECIPES)
    ]


def _recipe(name: str, request: Request) -> dict[str, Any]:
    folder = Path(request.folder)
    here, there = folder / f"{name}-{request.device}", folder / f"{name}-cpu-beside"
    on = ("--device", request.device)
    steps: dict[str, Any] = {}
    run = ("run", "embedded", "-r", name, "--json", "--quiet", "--overwrite", *TOKENS)
    steps["run"] = _command(*run, "-o", str(here), *on)
    if "error" not in steps["run"]:
        steps["eval"] = _command("eval", "embedded", str(here), "--json", "--quiet", *EVALUATED, *on)
        steps["generate"] = _command(
            "generate", str(here), "The model", "--max-new-tokens", "24", "--json", "--quiet", *on
        )
        steps["verify"] = _command("verify", str(here), "--source", "embedded", "--json")
        sizes = ("--prompt-length", "64", "--new-tokens", "16", "--repeats", "1")
        steps["bench"] = _command("bench", str(here), *sizes, "--json", *on)
    steps["run on the CPU"] = _command(*run, "-o", str(there), "--device", "cpu", "--no-fresh-process")
    if "error" not in steps["run on the CPU"]:
        steps["eval on the CPU"] = _command(
            "eval", "embedded", str(there), "--json", "--quiet", *EVALUATED, "--device", "cpu"
        )
    return {"steps": {step: _short(step, row) for step, row in steps.items()}}


def _command(*arguments: str) -> dict[str, Any]:
    """Run the command line in a process of its own: its JSON, or the end of what it printed."""
    start = time.perf_counter()
    threads = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "compress_cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **threads},
        check=False,
    )
    taken = {"seconds": round(time.perf_counter() - start, 1)}
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        return {"error": f"exit status {done.returncode}", "trace": lines[-3 * TRACE_LINES :], **taken}
    try:
        return {"answer": json.loads(done.stdout), **taken}
    except json.JSONDecodeError:
        return {"error": "printed no JSON", "trace": done.stdout.splitlines()[-TRACE_LINES:], **taken}


def _short(step: str, row: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an answer."""
    answer = row.pop("answer", None)
    if answer is None:
        return row
    if step.startswith("eval"):
        candidate, dense = answer["candidates"][0], answer["reference"]
        return (
            row
            | {name: candidate[name] for name in ("kl", "perplexity", "top1")}
            | {"dense": dense["perplexity"]}
        )
    if step == "generate":
        return row | {"text": answer["text"][:80], "decode_rate": answer["decode_rate"]}
    if step == "bench":
        return row | {name: answer["figures"][0][name] for name in ("prefill", "decode", "device")}
    return row


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Lines for people: what failed, and both divergences."""
    lines = []
    for row in rows:
        if "error" in row:
            lines.append(f"{row['name']}: {row['error']} {' / '.join(row.get('trace', [])[-3:])}")
            continue
        steps = row["steps"]
        here, there = (steps.get(name, {}).get("kl") for name in ("eval", "eval on the CPU"))
        figures = " ".join("-" if kl is None else f"{kl:.5f}" for kl in (here, there))
        seconds = " ".join(f"{step} {taken['seconds']:.0f}s" for step, taken in steps.items())
        lines.append(f"{row['name']:18} KL {figures}  {seconds}")
        for step, taken in steps.items():
            if "error" in taken:
                lines.append(f"   FAILED {step}: {taken['error']}: " + " / ".join(taken["trace"][-9:])[-900:])
    return lines
