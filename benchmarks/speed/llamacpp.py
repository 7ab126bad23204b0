"""Packed models against llama.cpp's files of the same model and against vLLM: decoding, a prompt, memory, the first token.

``python -m benchmarks.speed.llamacpp MODEL --python ENV/bin/python --work WORK`` needs an environment with
``llama_cpp_py_sync`` (over node-llama-cpp's libraries, which are built for each CPU generation). With ``--vllm ENV/bin/python``
vLLM's CPU wheel is measured too, on the model itself and on four bits with embeddings left as they are. Every file is made
once in the work folder: ours by rounding to nearest, without data, for codes cost the same time whatever solver chose them.
Each checkpoint is measured in a process of its own, ours and theirs in turn, on one thread and on two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RunFailed, table, write_results
from compress import compress, export

RUNNERS = Path(__file__).parent / "runners"
EMBEDDINGS = {"bits": 8, "group_size": "auto", "symmetric": True, "scales": "minmax"}


def _recipe(
    bits: int | None, *, symmetric: bool = True, prune: dict[str, Any] | None = None
) -> dict[str, Any]:
    step: dict[str, Any] = {"targets": ["linear"], "solver": "nearest"}
    if bits is not None:
        step["quantize"] = {
            "bits": bits, "group_size": "auto", "symmetric": symmetric, "scales": "minmax",
        }  # fmt: skip
    if prune is not None:
        step["prune"] = prune
    return {"name": "speed", "steps": [step], "embeddings": EMBEDDINGS}


OURS: dict[str, dict[str, Any] | None] = {
    "w4": _recipe(4),
    "w8": _recipe(8),
    "w3": _recipe(3, symmetric=False),
    "w2": _recipe(2, symmetric=False),
    "2:4 w4": _recipe(4, prune={"pattern": "2:4"}),
    "bitmask 50% w4": _recipe(4, prune={"sparsity": 0.5}),
    "bf16": None,
}
"""Recipes; embeddings and head in eight bits. ``None``: the model as it is."""

THEIRS = ("Q4_K_M", "Q4_1", "Q8_0")
VLLM: dict[str, dict[str, Any] | None] = {
    "vLLM w4": {key: value for key, value in _recipe(4).items() if key != "embeddings"},
    "vLLM bf16": None,
}
BARS = (
    ("decode", "w4", "Q4_K_M", 1.0),
    ("prefill", "w4", "Q4_K_M", 0.9),
    ("decode", "w8", "Q8_0", 1.0),
    ("decode", "w4", "vLLM w4", 1.0),
    ("decode", "2:4 w4", "w4", 1.15),
    ("decode", "bitmask 50% w4", "w4", 1.15),
    ("decode", "w2", "w4", 1.0),
    ("decode", "w3", "w4", 1.0),
)
"""Tokens per second of one over those of another, at least."""


def prepare(model: Path, work: Path, python: Path, names: Sequence[str]) -> dict[str, Path]:
    """Every checkpoint of ``names``, made unless it is there already."""
    work.mkdir(parents=True, exist_ok=True)
    made = {}
    recipes = OURS | VLLM
    for name, recipe in ((name, recipes[name]) for name in names if name in recipes):
        folder = made[name] = (
            model if recipe is None else work / name.replace(" ", "-").replace(":", "").replace("%", "")
        )
        if not folder.exists():
            compress(model, recipe, folder)
    dense = work / "gguf-bf16"
    if not dense.exists() and any(name in THEIRS for name in names):
        export(model, dense, format="gguf")
    for kind in (name for name in names if name in THEIRS):
        file = made[kind] = work / f"{kind}.gguf"
        if not file.exists():
            command = [
                str(python),
                str(RUNNERS / "llamacpp.py"),
                "quantize",
                str(dense / "model.gguf"),
                str(file),
                kind,
            ]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return made


def runner_of(name: str, python: Path, vllm: Path | None) -> list[str]:
    """The command that measures a checkpoint of that name, up to its path."""
    if name in THEIRS:
        return [str(python), str(RUNNERS / "llamacpp.py"), "measure"]
    if name in VLLM:
        return [str(vllm), str(RUNNERS / "served_by_vllm.py"), "measure"]
    return [sys.executable, "-m", "benchmarks.speed.runners.ours"]


def measure(path: Path, runner: Sequence[str], threads: int, sizes: tuple[int, int, int]) -> dict[str, Any]:
    """What a runner prints of one checkpoint."""
    done = subprocess.run(
        [*runner, str(path), str(threads), *map(str, sizes)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunFailed(f"measuring {path.name} ended with status {done.returncode}: {done.stderr[-1500:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def figures(found: dict[str, Any], sizes: tuple[int, int, int]) -> dict[str, Any]:
    """Medians: tokens per second by the clock, and for each second of the processor on one thread."""
    prompt, new, _ = sizes
    clock = {key: statistics.median(seconds for seconds, _ in found[key]) for key in ("prefill", "decode")}
    processor = {
        key: statistics.median(seconds for _, seconds in found[key]) for key in ("prefill", "decode")
    }
    return {
        "prefill": prompt / clock["prefill"],
        "decode": new / clock["decode"],
        "prefill_per_processor_second": prompt / processor["prefill"],
        "decode_per_processor_second": new / processor["decode"],
        "first_token_seconds": found["first_token"][0],
        "first_token_processor_seconds": found["first_token"][1],
        "resident_bytes": found["resident"]["VmRSS"],
        "anonymous_bytes": found["resident"]["RssAnon"],
        "note": found.get("note"),
    }


def bars(rows: list[dict[str, Any]], threads: int, key: str) -> list[dict[str, Any]]:
    """Each bar with what was reached."""
    held = {row["name"]: row for row in rows if row["threads"] == threads}
    suffix = "" if key == "clock" else "_per_processor_second"
    return [
        {
            "what": what,
            "of": one,
            "over": other,
            "bar": bar,
            "ratio": held[one][what + suffix] / held[other][what + suffix],
        }
        for what, one, other, bar in BARS
        if one in held and other in held
    ]


def main() -> None:
    """Prepare, measure, print, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--python", type=Path, required=True, help="of the environment with llama.cpp")
    parser.add_argument("--work", type=Path, default=Path("build/llamacpp"))
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--vllm", type=Path, help="python of the environment with vLLM")
    parser.add_argument(
        "--only", nargs="+", choices=[*OURS, *THEIRS, *VLLM], help="default: all that there is a program for"
    )
    parser.add_argument("--name", default="decode-llamacpp", help="of the file of results")
    arguments = parser.parse_args()
    sizes = (arguments.prompt, arguments.new, arguments.repeats)
    names = arguments.only or [*OURS, *THEIRS, *(VLLM if arguments.vllm else ())]
    made = prepare(arguments.model, arguments.work, arguments.python, names)
    rows, load = [], os.getloadavg()[0]
    for threads in arguments.threads:
        for name in names:
            runner = runner_of(name, arguments.python, arguments.vllm)
            found = figures(measure(made[name], runner, threads, sizes), sizes)
            size = sum(file.stat().st_size for file in _weights(made[name]))
            rows.append({"name": name, "threads": threads, "bytes": size, **found})
            print(json.dumps(rows[-1]), file=sys.stderr)
    reached = {
        f"{threads} threads, {key}": bars(rows, threads, key)
        for threads in arguments.threads
        for key in ("clock", "processor")
    }
    print(
        table(
            ["", "threads", "decode", "prefill"],
            [[r["name"], r["threads"], r["decode"], r["prefill"]] for r in rows],
        )
    )
    write_results(
        arguments.name,
        {
            "model": arguments.model.name,
            "sizes": dict(zip(("prompt", "new", "repeats"), sizes, strict=True)),
            "load_average": [round(load, 2), round(os.getloadavg()[0], 2)],
            "rows": rows,
            "bars": reached,
        },
    )


def _weights(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.safetensors"))


if __name__ == "__main__":
    main()
