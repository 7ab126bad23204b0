"""GPTQ, AWQ and MLX in the programs that read them: log-probabilities beside those of `compress.load` in fp32.

``python -m benchmarks.servers.packed_logits --model MODEL --work FOLDER --mlx PYTHON --gptqmodel PYTHON`` writes the model in
every scheme by plain rounding, asks mlx_lm, GPTQModel and plain transformers for log-probabilities of the same tokens, and
prints the mean KL(ours ‖ theirs) in nats, the largest difference and how often the most likely token is the same. A program
that refuses a folder stands with the sentence that it gave.
"""

from __future__ import annotations

import argparse
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import compress
from benchmarks.common import fixed_threads, table, write_results
from benchmarks.servers.programs import RUNNERS
from compress.assets import EMBEDDED, embedded_model
from compress.recipe.recipe import Recipe

BITS = {"gptq": (2, 3, 4, 8), "awq": (4,), "mlx": (2, 3, 4, 5, 6, 8)}
MODES = ("mxfp4", "nvfp4", "mxfp8")


@dataclass(frozen=True)
class Scheme:
    """A format and what ``quantize`` says; embeddings are compressed where the format holds them."""

    format: str
    quantize: dict[str, Any]

    @property
    def name(self) -> str:
        """For folders and tables."""
        if "type" in self.quantize:
            return f"{self.format}-{self.quantize['type']}"
        kind = "symmetric" if self.quantize["symmetric"] else "asymmetric"
        return f"{self.format}-{self.quantize['bits']}-{kind}"

    def recipe(self) -> Recipe:
        """Plain rounding of all that the format holds."""
        targets = ["linear", "embeddings"] if self.format == "mlx" else ["linear"]
        step = {"targets": targets, "quantize": self.quantize, "solver": "nearest"}
        return Recipe.parse({"name": self.name, "steps": [step]})


def schemes(group: int) -> list[Scheme]:
    """Every format with every width, symmetric and asymmetric, and the small floats."""
    found = [
        Scheme(format, {"bits": width, "group_size": group, "symmetric": symmetric})
        for format, widths in BITS.items()
        for width in widths
        for symmetric in (True, False)
    ]
    return [*found, *(Scheme("mlx", {"type": mode}) for mode in MODES)]


def ours(folder: Path, ids: Any) -> Any:
    """Log-probabilities fp64 of :func:`compress.load`."""
    model = compress.load(folder, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        windows = (model(torch.from_numpy(window[None])).logits[0].double() for window in ids)
        return np.stack([window.log_softmax(-1).numpy() for window in windows])


def asked(command: list[str], out: Path) -> Any:
    """Log-probabilities of another program, or the last line of what it said."""
    out.unlink(missing_ok=True)
    alone = {key: value for key, value in fixed_threads(1).items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    if done.returncode or not out.is_file():
        return (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
    return np.load(out).astype(np.float64)


def compared(reference: Any, other: Any) -> dict[str, Any]:
    """The figures of a row."""
    if isinstance(other, str):
        return {"refused": other}
    kl = (np.exp(reference) * (reference - other)).sum(-1).mean()
    same = (reference.argmax(-1) == other.argmax(-1)).mean()
    return {"kl": float(kl), "largest": float(np.abs(reference - other).max()), "top1": float(same)}


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--work", type=Path, default=Path("build/packed-logits"))
    parser.add_argument("--mlx", type=Path, help="Python with mlx_lm")
    parser.add_argument("--gptqmodel", type=Path, help="Python with gptqmodel and optimum")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--only", nargs="*", help="names of schemes")
    parser.add_argument("--record", help="name of the result file")
    options = parser.parse_args()
    model = embedded_model() if options.model == EMBEDDED else Path(options.model)
    options.work.mkdir(parents=True, exist_ok=True)
    ids, ids_path, out = np.arange(5, 69)[None], options.work / "ids.npy", options.work / "out.npy"
    np.save(ids_path, ids)
    rows = []
    for scheme in (one for one in schemes(options.group) if not options.only or one.name in options.only):
        folder = options.work / scheme.name
        compress.compress(model, scheme.recipe(), folder, format=scheme.format, overwrite=True)
        reference = ours(folder, ids)
        programs = {"mlx_lm": [str(options.mlx), str(RUNNERS / "mlx_logits.py")]} if options.mlx else {}
        if scheme.format != "mlx":
            script = str(RUNNERS / "gptq_logits.py")
            loaders = ("gptqmodel", "transformers") if options.gptqmodel else ()
            programs = {loader: [str(options.gptqmodel), script, loader] for loader in loaders}
        for program, command in programs.items():
            answer = asked([*command, str(folder), str(ids_path), str(out)], out)
            rows.append({"scheme": scheme.name, "program": program, **compared(reference, answer)})
            print(rows[-1], flush=True)
    keys = ["scheme", "program", "kl", "largest", "top1", "refused"]
    print(table(keys, [[row.get(key, "") for key in keys] for row in rows]))
    if options.record:
        print(write_results(options.record, {"model": model.name, "rows": rows}))


if __name__ == "__main__":
    main()
