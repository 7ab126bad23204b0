"""How fast a packed model decodes on the CPU, and in what memory: a random Llama of half a billion or three billion weights.

``python -m benchmarks.speed.decode --work WORK`` writes the model into the work folder, compresses it with ``w4-rtn`` (no data)
and measures both through ``compress bench``, a process each, in turns. Memory is what a process holds beyond its imports,
mapped files excluded. The bars: twice the tokens per second of bf16 (2.5 times at three billion), at most 0.35 of its memory.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path

from benchmarks.common import megabytes, table, write_results
from benchmarks.speed.random_models import Shape, write_model
from compress import compress
from compress.assets import embedded_model
from compress.runtime.bench import BenchFigures, BenchSettings, bench

SHAPES = {
    "0.5b": Shape(hidden=2048, ffn=5632, heads=32, blocks=10, vocabulary=16384),
    "3b": Shape(hidden=3072, ffn=8192, heads=24, blocks=26, vocabulary=16384),
}
SPEED_BARS, MEMORY_BAR = {"0.5b": 2.0, "3b": 2.5}, 0.35


def prepare(work: Path, size: str, recipe: str) -> tuple[Path, Path]:
    """The dense folder and the packed one, made unless they are there already."""
    dense, packed = work / f"decode-{size}-dense", work / f"decode-{size}-{recipe}"
    if not (dense / "model.safetensors.index.json").exists():
        write_model(dense, SHAPES[size], embedded_model())
    if not packed.exists():
        compress(dense, recipe, packed, settings={"quantize.scales": "minmax"})
    return dense, packed


def row(figures: BenchFigures) -> list[object]:
    """One line of the table."""
    return [
        figures.name,
        figures.prefill,
        figures.decode,
        megabytes(figures.memory_bytes or 0),
        megabytes(figures.peak_bytes or 0),
        figures.load_seconds,
    ]


def verdict(what: str, value: float, bar: float, *, least: bool) -> str:
    """A line that says whether a bar is met."""
    met = value >= bar if least else value <= bar
    return f"{what}: {value:.3g} (bar {'≥' if least else '≤'} {bar:.3g}): {'met' if met else 'NOT MET'}"


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/decode"))
    parser.add_argument("--size", default="0.5b", choices=list(SHAPES))
    parser.add_argument("--recipe", default="w4-rtn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-length", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="decode", help="of the file of results")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    settings = BenchSettings(
        prompt_length=arguments.prompt_length,
        new_tokens=arguments.new_tokens,
        repeats=arguments.repeats,
        threads=arguments.threads,
        device="cpu",
        dtype="bf16",
    )
    dense, packed = bench(
        prepare(arguments.work, arguments.size, arguments.recipe), settings, rounds=arguments.rounds
    )
    headers = ["", "prefill tokens/s", "decode tokens/s", "MB held", "MB at most", "loads in s"]
    print(table(headers, [row(dense), row(packed)]))
    speed = packed.decode / dense.decode
    memory = (packed.memory_bytes or 0) / (dense.memory_bytes or 1)
    peak = (packed.peak_bytes or 0) / (dense.peak_bytes or 1)
    print(verdict("decode, tokens per second against bf16", speed, SPEED_BARS[arguments.size], least=True))
    print(verdict("memory against bf16", memory, MEMORY_BAR, least=False))
    print(verdict("memory at most against bf16", peak, MEMORY_BAR, least=False))
    write_results(
        arguments.name,
        {
            "model": asdict(SHAPES[arguments.size]),
            "recipe": arguments.recipe,
            "settings": asdict(settings),
            "load_average_at_end": round(os.getloadavg()[0], 2),
            "figures": [dense.to_json(), packed.to_json()],
            "decode_ratio": speed,
            "prefill_ratio": packed.prefill / dense.prefill,
            "memory_ratio": memory,
            "peak_ratio": peak,
            "bars": {"decode_ratio": SPEED_BARS[arguments.size], "memory_ratio": MEMORY_BAR},
        },
    )


if __name__ == "__main__":
    main()
