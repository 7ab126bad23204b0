"""The README's tables of speed, from what ``kernels.py``, ``kernel_peers.py`` and ``decode.py`` measured.

``python -m benchmarks.speed.table`` prints them; ``--write`` puts them between the marks ``<!-- speed -->`` in README.md.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks.common import REPOSITORY, RESULTS, table

KERNELS = "amd-epyc-avx512-bf16-1t.json"
SHAPE = [4096, 4096]
ROWS = (1, 4, 16, 64, 256, 512)
NAMES = ("w4 g128", "w8 g128", "w3 g128", "2:4", "bitmask 50%", "2:4 w4", "low rank 50%", "w8a8", "nf4")
PEERS = (
    "compress w4",
    "torchao int4",
    "quanto int4",
    "gptqmodel fused int4",
    "bitsandbytes nf4",
    "auto-round-lib int4",
)


def load(name: str) -> dict[str, Any]:
    """A file of results."""
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def tokens(count: int) -> str:
    """A heading."""
    return f"{count} token" if count == 1 else f"{count} tokens"


def kernels() -> str:
    """Speed-ups of our layers by number of tokens."""
    rows = [row for row in load(KERNELS)["timings"] if row["shape"] == SHAPE]
    speed = {(row["name"], row["rows"]): row["speedup"] for row in rows}
    memory = {row["name"]: row["memory"] for row in rows}
    lines = [
        [name, f"{memory[name]:.2f}", *(f"{speed[name, count]:.2f}" for count in ROWS)] for name in NAMES
    ]
    return table(["layer", "memory", *map(tokens, ROWS)], lines)


def peers() -> str:
    """The same for other tools' layers."""
    rows = [
        row for row in load("kernel-peers.json")["timings"] if row["shape"] == SHAPE and row["threads"] == 1
    ]
    speed = {(row["name"], row["rows"]): row["speedup"] for row in rows}
    counts = sorted({row["rows"] for row in rows})
    lines = [[name, *(f"{speed[name, count]:.2f}" for count in counts)] for name in PEERS]
    return table(["layer", *map(tokens, counts)], lines)


def decoding() -> str:
    """A sentence for each whole model that was measured."""
    sentences = []
    for name, size in (("decode.json", "0.5 billion"), ("decode-3b.json", "3 billion")):
        if not (RESULTS / name).is_file():
            continue
        found = load(name)
        sentences.append(
            f"A random Llama of {size} weights in W4 decodes {found['decode_ratio']:.1f} times as fast as in bf16 on "
            f"{found['settings']['threads']} threads, in {found['memory_ratio']:.2f} of the memory "
            f"({found['peak_ratio']:.2f} at the peak, loading included)."
        )
    return " ".join(sentences)


def section() -> str:
    """Everything between the marks."""
    machine = load(KERNELS)
    return "\n\n".join(
        (
            kernels(),
            f"Speed of one layer of 4096 × 4096 over torch's bf16, and its memory ({machine['device']}, {machine['date']}, "
            "one thread, weights out of cache, a busy machine: 10–20% of noise). Other tools' layers in environments of "
            "their own, beside bf16 in the same process:",
            peers(),
            decoding(),
        )
    )


def main() -> None:
    """Print, or write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--write", action="store_true")
    made = section()
    if not parser.parse_args().write:
        print(made)
        return
    readme = REPOSITORY / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition("<!-- speed -->")
    _, mark, after = rest.partition("<!-- /speed -->")
    if not mark:
        raise SystemExit("README.md has no marks <!-- speed --> … <!-- /speed -->")
    readme.write_text(f"{before}<!-- speed -->\n{made}\n<!-- /speed -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
