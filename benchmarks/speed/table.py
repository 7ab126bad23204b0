"""The tables of speed, from what ``kernels.py``, ``peers.py``, ``decode.py`` and ``llamacpp.py`` measured.

``python -m benchmarks.speed.table`` prints them; ``--write`` puts them between the marks ``<!-- speed -->`` in docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks.common import REPOSITORY, RESULTS, table

KERNELS = "amd-epyc-avx512-bf16-1t.json"
INTEL, INTEL_AVX2 = (f"intel-r-xeon-r-processor-{isa}-1t.json" for isa in ("avx512-bf16", "avx2"))
LLAMACPP = ("decode-llamacpp.json", "decode-llamacpp-intel.json", "decode-llamacpp-1b.json")
TURNS = "decode-turns.json"
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


def layers(name: str) -> str:
    """Every layer that a file of results has, by number of tokens."""
    rows = [row for row in load(name)["timings"] if row["shape"] == SHAPE and row["name"] != "bf16"]
    counts = sorted({row["rows"] for row in rows})
    lines = []
    for layer in dict.fromkeys(row["name"] for row in rows):
        found = {row["rows"]: row for row in rows if row["name"] == layer}
        memory = f"{found[counts[0]]['memory']:.2f}"
        lines.append([layer, memory, *(f"{found[count]['speedup']:.2f}" for count in counts)])
    return table(["layer", "memory", *map(tokens, counts)], lines)


def gathers(name: str) -> str:
    """Rows of an embedding by their ids."""
    rows = load(name)["gathers"]
    ms = {(row["name"], row["ids"]): row["ms"] for row in rows}
    names, counts = dict.fromkeys(row["name"] for row in rows), dict.fromkeys(row["ids"] for row in rows)
    lines = [[layer, *(f"{ms[layer, count]:.3f}" for count in counts)] for layer in names]
    return table(["table", *(f"{count} ids" if count > 1 else "1 id" for count in counts)], lines)


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


def llamacpp(name: str) -> str:
    """Whole models beside llama.cpp's files of the same model, and the bars."""
    found = load(name)
    machine, sizes = found["machine"], found["sizes"]
    low, high = min(found["load_average"]), max(found["load_average"])
    lines = [
        [
            row["name"],
            row["threads"],
            f"{row['bytes'] / 1e6:.0f}",
            f"{row['decode']:.0f}",
            f"{row['decode_per_processor_second']:.0f}",
            f"{row['prefill']:.0f}",
            f"{row['prefill_per_processor_second']:.0f}",
            f"{row['first_token_seconds']:.2f}",
            f"{row['resident_bytes'] / 1e6:.0f}",
        ]
        for row in found["rows"]
    ]
    headers = [
        "",
        "threads",
        "MB",
        "decode",
        "per CPU s",
        "prefill",
        "per CPU s",
        "first token, s",
        "resident, MB",
    ]
    reached = [
        [f"{bar['what']}: {bar['of']} over {bar['over']}", name, f"{bar['ratio']:.2f}", f"≥ {bar['bar']:.2f}"]
        for name, bars in found["bars"].items()
        for bar in bars
    ]
    others = " and vLLM" if any(row["name"].startswith("vLLM") for row in found["rows"]) else ""
    lacks = "" if "avx512_bf16" in machine["cpu_features"] else " without bf16 instructions"
    return "\n\n".join(
        (
            f"{found['model']} beside llama.cpp's files of it (names with capitals){others}, {machine['cpu']}{lacks}, "
            f"{machine['day']}, load {low:.1f} to {high:.1f} on {machine['cores']} processors. Tokens per second by the "
            f"clock, and for each second that the process had of a processor: {sizes['new']} tokens after a short prompt, "
            f"and a prompt of {sizes['prompt']}; medians of {sizes['repeats']}. First token: from the call that loads the "
            "checkpoint, kernels built. Resident: beyond what the process held before it, pages of files included.",
            table(headers, lines),
            "Ratios of tokens per second:",
            table(["", "", "reached", "bar"], reached),
        )
    )


def turns() -> str:
    """Decoding of the same files in turns, and its bars."""
    found = load(TURNS)
    machine = found["machine"]
    lines = [
        [row["name"], row["threads"], row["turns"]]
        + [f"{value:.2f}" for value in (*row["clock_ms"], *row["processor_ms"])]
        for row in found["rows"]
    ]
    reached = [
        [
            f"{bar['of']} over {bar['over']}",
            threads,
            f"{bar['of_pairs']:.2f}",
            f"{bar['of_least']:.2f}",
            f"≥ {bar['bar']:.2f}",
        ]
        for threads, bars in found["bars"].items()
        for bar in bars
    ]
    low, high = min(found["load_average"]), max(found["load_average"])
    return "\n\n".join(
        (
            f"Decoding in turns (`python -m benchmarks.speed.turns`; {found['model']}, {machine['cpu']}, {machine['day']}, "
            f"load {low:.1f} to {high:.1f} on {machine['cores']} processors): every file in a process of its own, "
            f"{found['turn']} tokens after a short prompt in turn, again and again. Milliseconds of a token by the clock, and "
            "of the processor, all threads together:",
            table(["", "threads", "turns", "least", "median", "CPU, least", "CPU, median"], lines),
            "Tokens for each second of the processor, of neighbouring turns (median) and of the least ones:",
            table(["", "threads", "of turns", "of least", "bar"], reached),
        )
    )


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
            *((turns(),) if (RESULTS / TURNS).is_file() else ()),
            *(llamacpp(name) for name in LLAMACPP if (RESULTS / name).is_file()),
            f"ggml's types and packed integers on another machine ({load(INTEL)['device']}, AMX, {load(INTEL)['date']}, "
            f"one thread of a very busy machine: load {load(INTEL)['load_average_at_end']:.0f} on 2 processors):",
            layers(INTEL),
            "From nine tokens on (packed integers and NF4: sixteen) W is written "
            "out in bf16 for oneDNN, which is slower than a dense layer on this machine. "
            "The same machine held to AVX2, torch's bf16 layer too:",
            layers(INTEL_AVX2),
            "AVX2 has no kernel for one token of NF4: W is written out. Rows of an embedding of 49152 × 576, milliseconds:",
            gathers(INTEL),
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
    page = REPOSITORY / "docs" / "speed.md"
    before, _, rest = page.read_text(encoding="utf-8").partition("<!-- speed -->")
    _, mark, after = rest.partition("<!-- /speed -->")
    if not mark:
        raise SystemExit("docs/speed.md has no marks <!-- speed --> … <!-- /speed -->")
    page.write_text(f"{before}<!-- speed -->\n{made}\n<!-- /speed -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
