"""End to end: run, eval, generate, verify and bench on the device, with the embedded model, beside a run on the CPU."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from compress_cli.main import app
from typer.testing import CliRunner

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
SECONDS, PROCESSES = 170, 16
TOKENS = ("--samples", "8", "--length", "256")
EVALUATED = ("--limit", "16", "--length", "256")


def items(request: Request) -> list[Item]:
    """A recipe with everything that is done with its output."""
    return [
        Item(name, partial(_recipe, name, request)) for name in (QUICK_RECIPES if request.quick else RECIPES)
    ]


def _recipe(name: str, request: Request) -> Iterator[dict[str, Any]]:
    folder = Path(request.folder)
    here, there = folder / f"{name}-{request.device}", folder / f"{name}-cpu-beside"
    on = ("--device", request.device)
    run = ("run", "embedded", "-r", name, "--json", "--quiet", "--overwrite", "--no-fresh-process", *TOKENS)
    evaluated = ("--json", "--quiet", *EVALUATED)
    commands: list[tuple[str, tuple[str, ...]]] = [
        ("run", (*run, "-o", str(here), *on)),
        ("eval", ("eval", "embedded", str(here), *evaluated, *on)),
        (
            "generate",
            ("generate", str(here), "The model", "--max-new-tokens", "24", "--json", "--quiet", *on),
        ),
        ("verify", ("verify", str(here), "--source", "embedded", "--json", "--no-fresh-process")),
        (
            "bench",
            (
                "bench",
                str(here),
                "--prompt-length",
                "64",
                "--new-tokens",
                "16",
                "--repeats",
                "1",
                "--json",
                *on,
            ),
        ),
        ("run on the CPU", (*run, "-o", str(there), "--device", "cpu")),
        ("eval on the CPU", ("eval", "embedded", str(there), *evaluated, "--device", "cpu")),
    ]
    steps: dict[str, Any] = {}
    for step, arguments in commands:
        made = here if not step.endswith("CPU") or step.startswith("run") else there
        if step.startswith("run") or made.exists():
            steps[step] = _short(step, command(*arguments))
            yield {"steps": steps}


def command(*arguments: str) -> dict[str, Any]:
    """Run the command line in this process: its JSON, or the end of what it said and of the traceback."""
    start = time.perf_counter()
    done = CliRunner().invoke(app, arguments)
    taken = {"seconds": round(time.perf_counter() - start, 1)}
    if done.exit_code:
        lines = [line for line in f"{done.stderr}\n{done.stdout}".splitlines() if line.strip(" │╭╰─╮╯")]
        trace = []
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            trace = "".join(traceback.format_exception(done.exception)).splitlines()
        return {
            "error": f"exit status {done.exit_code}",
            "trace": [*lines[-6:], *trace[-2 * TRACE_LINES :]],
            **taken,
        }
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
        steps = row.get("steps", {})
        here, there = (steps.get(name, {}).get("kl") for name in ("eval", "eval on the CPU"))
        figures = " ".join("-" if kl is None else f"{kl:.5f}" for kl in (here, there))
        seconds = " ".join(f"{step} {taken['seconds']:.0f}s" for step, taken in steps.items())
        lines.append(f"{row['name']:18} KL {figures}  {seconds}")
        for step, taken in steps.items():
            if "error" in taken:
                lines.append(f"   FAILED {step}: {taken['error']}: " + " / ".join(taken["trace"][-9:])[-900:])
    return lines
