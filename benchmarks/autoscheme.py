"""Our budgets beside AutoRound's AutoScheme, at the bytes of what it chose.

``python -m benchmarks.autoscheme MODEL --calibrate TEXT --text OTHER --python PYTHON --bits 2.5 3.25 4.25``

AutoScheme chooses 2, 3, 4 or 8 bits for every linear layer and AutoRound tunes them (``PYTHON`` has auto-round). Ours is
``compress run --budget`` at the bytes of that model: its layers packed as ours are, with the dense embeddings, head and norms
that it leaves. Both see text of the same file, and are judged by KL from the dense model in fp32 on another one. Writes
``benchmarks/results/autoscheme-<model>.json``.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from compress_kernels.layouts import PackedInteger
from safetensors import safe_open

from benchmarks.common import RESULTS, fixed_threads, machine_record, run_measured, table, write_results
from benchmarks.frontier.bench import COMMAND, source_paths
from compress import evaluate
from compress.assets import EMBEDDED, embedded_model

RUNNER = Path(__file__).parent / "peers" / "runners" / "run_autoround_bits.py"
GROUP = 64


def pieces(text: Path, count: int, length: int, seed: int) -> list[dict[str, str]]:
    """Random pieces of a text that are longer than ``length`` tokens."""
    whole, draw = text.read_text(encoding="utf-8"), random.Random(seed)
    size = 8 * length
    return [
        {"text": whole[at : at + size]} for at in (draw.randrange(len(whole) - size) for _ in range(count))
    ]


def packed_bytes(folder: Path) -> int:
    """Bytes of the weights of ``folder`` with the layers of its ``bits.json`` packed in groups of 64, asymmetric."""
    bits = json.loads((folder / "bits.json").read_text(encoding="utf-8"))
    total = 0
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            tensor = file.get_tensor(name)
            width = bits.get(name.removesuffix(".weight"))
            if width is None:
                total += tensor.nbytes
                continue
            specs = PackedInteger(width, GROUP, False).specs((tensor.shape[0], tensor.shape[1]))
            total += sum(spec.nbytes for spec in specs.values())
    return total


def theirs(arguments: argparse.Namespace, bits: float, seed: int) -> tuple[Path, float]:
    """Run AutoScheme and AutoRound; the decoded model and the seconds it took."""
    work = Path(arguments.work)
    out = work / f"autoscheme-{bits}-{seed}"
    text, job = work / f"pieces-{seed}.json", work / f"job-{bits}-{seed}.json"
    found = pieces(Path(arguments.calibrate), 2 * arguments.samples, arguments.length, seed)
    text.write_text(json.dumps(found), encoding="utf-8")
    asked = {key: getattr(arguments, key) for key in ("model", "samples", "length", "iterations")}
    job.write_text(
        json.dumps({**asked, "text": str(text), "out": str(out), "bits": bits, "group": GROUP, "seed": seed}),
        encoding="utf-8",
    )
    environment = fixed_threads(1) | {"PYTHONPATH": arguments.python_path}
    measured = run_measured([arguments.python, str(RUNNER), str(job)], environment=environment)
    return out, measured.seconds


def ours(
    arguments: argparse.Namespace, budget: int, runtime: str, label: str, seed: int
) -> tuple[Path, float]:
    """``compress run --budget``; its output and the seconds it took."""
    out = Path(arguments.work) / f"{runtime}-{label}-{seed}"
    drawn = ["--samples", str(arguments.samples), "--length", str(arguments.length), "--seed", str(seed)]
    asked = ["--budget", f"{budget}B", "--runtime", runtime, "--data", arguments.calibrate, *drawn]
    measured = run_measured(
        [*COMMAND, "run", arguments.model, *asked, "-o", str(out), "--quiet"],
        environment=fixed_threads(1) | {"PYTHONPATH": source_paths()},
    )
    return out, measured.seconds


def compare(arguments: argparse.Namespace, bits: float, seed: int) -> dict[str, Any]:
    """One budget."""
    folder, seconds = theirs(arguments, bits, seed)
    budget = packed_bytes(folder)
    made = {"autoscheme": (folder, seconds)}
    for runtime in arguments.runtimes:
        made[runtime] = ours(arguments, budget, runtime, str(bits), seed)
    found = evaluate(
        arguments.model,
        [out for out, _ in made.values()],
        text=arguments.text,
        length=arguments.length,
        limit=arguments.windows,
        dtype="fp32",
        device="cpu",
        speed=False,
    )
    row: dict[str, Any] = {"bits": bits, "seed": seed, "budget": budget}
    for (name, (_, taken)), one in zip(made.items(), found.candidates, strict=True):
        size = budget if name == "autoscheme" else one.bytes_on_disk
        row[name] = {"kl": one.kl, "top1": one.top1, "bytes": size, "seconds": taken}
    return row


def autoscheme_table(rows: list[dict[str, Any]]) -> str:
    """KL at equal bytes."""
    others = [name for name in rows[0] if isinstance(rows[0][name], dict) and name != "autoscheme"]
    heads = ["average bits", "seed", "MB", "AutoScheme", *(f"{name} ÷" for name in others)]
    return table(
        heads,
        [
            [
                row["bits"],
                row["seed"],
                row["budget"] / 1e6,
                row["autoscheme"]["kl"],
                *(row[name]["kl"] / row["autoscheme"]["kl"] for name in others),
            ]
            for row in rows
        ],
    )


def main() -> None:
    """Run, print, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="a folder, or 'embedded'")
    parser.add_argument("--calibrate", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--python", required=True, help="an interpreter with auto-round")
    parser.add_argument("--python-path", default="", help="its PYTHONPATH")
    parser.add_argument("--bits", type=float, nargs="+", default=[4.25, 3.25, 2.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runtimes", nargs="+", default=["native"])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--work", required=True)
    arguments = parser.parse_args()
    name = arguments.model if arguments.model == EMBEDDED else Path(arguments.model).name.lower()
    if arguments.model == EMBEDDED:
        arguments.model = str(embedded_model())
    Path(arguments.work).mkdir(parents=True, exist_ok=True)
    asked = ("samples", "length", "windows", "iterations")
    conditions = {key: getattr(arguments, key) for key in asked} | {"group": GROUP}
    path, rows = RESULTS / f"autoscheme-{name}.json", []
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        rows = earlier["rows"] if earlier["conditions"] == conditions else []
    for seed in arguments.seeds:
        for bits in arguments.bits:
            if any((row["bits"], row["seed"]) == (bits, seed) for row in rows):
                continue
            rows.append(compare(arguments, bits, seed))
            print(json.dumps(rows[-1]), flush=True)
            write_results(path.stem, {"machine": machine_record(), "conditions": conditions, "rows": rows})
    print(autoscheme_table(rows))


if __name__ == "__main__":
    main()
