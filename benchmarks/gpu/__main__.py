"""Kernels and runs on a GPU: right, how fast, and end to end. A failure is a row of the table; one call shows them all.

``python -m benchmarks.gpu --out FILE`` runs every part on the first GPU and writes FILE (JSON); ``--parts correctness timing``
runs some, ``--only REGEX`` some items; ``--limit runs=60`` bounds a part in seconds. ``--device cpu --quick`` tries the
benchmark itself without a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine_record
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.processes import carry_out
from benchmarks.gpu.work import Request, wanted

PACKAGES = ("torch", "triton", "transformers", "compressed-tensors", "bitsandbytes", "safetensors")


def device_record(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    record: dict[str, Any] = {**machine_record(PACKAGES), "device": platform.processor() or "cpu"}
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        record |= {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "device_memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": round(getattr(properties, "L2_cache_size", 0) / 2**20),
            "cuda": torch.version.cuda,
        }
    return record


def run_part(part: str, request: Request, seconds: float, processes: int, logs: Path) -> dict[str, Any]:
    """The rows of a part, printed as lines."""
    module = PARTS[part]
    start = time.perf_counter()
    if hasattr(module, "COMPILE_SECONDS") and request.device != "cpu":
        ahead = replace(request, phase="compile")
        names = [item.name for item in wanted(module.items(ahead), ahead)]
        carry_out(part, ahead, names, module.COMPILE_PROCESSES, module.COMPILE_SECONDS, logs)
    names = [item.name for item in wanted(module.items(request), request)]
    rows = carry_out(part, request, names, processes, seconds, logs)
    taken = round(time.perf_counter() - start, 1)
    print(f"\n== {part}: {len(rows)} rows in {taken} s", flush=True)
    for line in module.summary(rows):
        print(line, flush=True)
    return {"seconds": taken, "rows": rows}


def main() -> int:
    """Run the parts, print, record after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small shapes, few cases")
    parser.add_argument("--limit", nargs="+", default=[], metavar="PART=SECONDS")
    parser.add_argument("--only", default="", metavar="REGEX", help="items whose names this finds")
    parser.add_argument("--processes", type=int, help="at most, in parts that have several")
    parser.add_argument("--work", type=Path, help="folder for models and outputs")
    arguments = parser.parse_args()
    limits = {part: float(seconds) for part, seconds in (text.split("=") for text in arguments.limit)}
    if unknown := limits.keys() - PARTS.keys():
        parser.error(f"--limit names no part: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        request = Request(arguments.device, arguments.quick, str(folder), only=arguments.only)
        answer: dict[str, Any] = {"machine": device_record(arguments.device), "parts": {}}
        for part in arguments.parts:
            module = PARTS[part]
            processes = min(module.PROCESSES, arguments.processes or module.PROCESSES)
            seconds = limits.get(part, module.SECONDS)
            answer["parts"][part] = run_part(part, request, seconds, processes, folder / "logs")
            arguments.out.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
