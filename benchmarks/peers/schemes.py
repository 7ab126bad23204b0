"""Small floats and rounded inputs beside other tools.

``python -m benchmarks.peers.schemes MODEL --name NAME --calibration TEXT --heldout TEXT`` gives every tool the same checkpoint,
calibration windows and scheme. Outputs in the format of compressed-tensors are loaded by ``compress.load``, which rounds inputs
as vLLM does; ModelOpt and AutoRound evaluate what they simulate themselves. The figure is KL(dense ‖ output) in nats, mean over
all tokens of the first windows of the held-out text, in fp32.

Figures go to ``benchmarks/results/schemes-NAME.json``; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import compress
from benchmarks.common import RESULTS, fixed_threads, table, write_results
from benchmarks.peers.environments import PEERS, python_of
from benchmarks.peers.jobs import RUNNERS
from benchmarks.peers.runners.divergence import divergence
from compress import Recipe
from compress.assets import EMBEDDED, embedded_model
from compress.calibrate.corpus import load_corpus
from compress.text.tokenize import load_tokenizer

INT8 = {"act_bits": 8, "act_group_size": -1, "act_sym": True, "act_data_type": "int", "act_dynamic": True}


@dataclass(frozen=True)
class Scheme:
    """A scheme, how each tool is asked for it, and the bar.

    Attributes:
        recipe: ours.
        preset: of compressed-tensors, for llm-compressor.
        modelopt: options of ``run_modelopt.py``; empty where ModelOpt has no such scheme.
        autoround: arguments of its scheme.
        bar: the largest share of the best peer's KL.
        grouped: whether ``--group`` is the group size of the weights.
    """

    recipe: str
    preset: str
    modelopt: Mapping[str, Any]
    autoround: Mapping[str, Any]
    bar: float
    grouped: bool = False


SCHEMES: Mapping[str, Scheme] = {
    "NVFP4A16": Scheme(
        "nvfp4a16",
        "NVFP4A16",
        {"config": "W4A16_NVFP4_CFG", "exported": True},
        {"bits": 4, "group_size": 16, "sym": True, "data_type": "nv_fp", "act_bits": 16},
        0.7,
    ),
    "MXFP4A16": Scheme(
        "mxfp4a16",
        "MXFP4A16",
        {"config": "MXFP4_DEFAULT_CFG", "weights_alone": True},
        {"bits": 4, "group_size": 32, "sym": True, "data_type": "mx_fp", "act_bits": 16},
        0.7,
    ),
    "W4A8": Scheme(
        "w4a8",
        "W4A8",
        {},
        {"bits": 4, "group_size": 128, "sym": True, "data_type": "int", **INT8},
        0.8,
        grouped=True,
    ),
    "W8A8": Scheme(
        "w8a8",
        "W8A8",
        {"config": "INT8_SMOOTHQUANT_CFG"},
        {"bits": 8, "group_size": -1, "sym": True, "data_type": "int", **INT8},
        1.0,
    ),
    "W8A16": Scheme(
        "w8",
        "W8A16",
        {"config": "INT8_WEIGHT_ONLY_CFG"},
        {"bits": 8, "group_size": -1, "sym": True, "data_type": "int", "act_bits": 16},
        1.0,
    ),
}
HEAD = ("scheme", "tool and method", "KL", "same top-1", "of the best peer's", "bar")
WEIGHTS_ALONE = 1.15
"""W8A8: the largest multiple of the KL of our weights alone in 8 bits."""


@dataclass(frozen=True)
class Setup:
    """What all rows share."""

    model: Path
    calibration: str
    samples: int
    length: int
    group: int
    work: Path
    iterations: int
    tokens: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", self.work / "tokens.pt")

    @property
    def ids(self) -> Path:
        """The held-out windows."""
        return self.work / "ids.npy"

    @property
    def dense(self) -> Path:
        """The dense model's log-probabilities of them."""
        return self.work / "dense.npy"

    def prepare(self, heldout: Path, windows: int, length: int) -> None:
        """Draw the calibration windows, cut the held-out ones, and run the dense model on these."""
        self.work.mkdir(parents=True, exist_ok=True)
        tokenizer = load_tokenizer(self.model)
        corpus = load_corpus(self.calibration, tokenizer, samples=self.samples, length=self.length, seed=0)
        torch.save(corpus.tokens, self.tokens)
        ids = tokenizer(heldout.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
        cut = np.array(ids[: windows * length], dtype=np.int64).reshape(windows, length)
        if self.dense.exists() and self.ids.exists() and np.array_equal(np.load(self.ids), cut):
            return
        np.save(self.ids, cut)
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32).eval()
        with torch.no_grad():
            rows = [
                model(input_ids=torch.from_numpy(one[None]), use_cache=False)
                .logits[0]
                .log_softmax(-1)
                .numpy()
                for one in cut
            ]
        np.save(self.dense, np.stack(rows))


def evaluated(folder: Path, setup: Setup) -> dict[str, float]:
    """The figures of a checkpoint, inputs rounded as its configuration says."""
    model = compress.load(folder, dtype=torch.float32, device="cpu").eval()
    return divergence(model, str(setup.ids), str(setup.dense))


def ours(scheme: Scheme, setup: Setup) -> dict[str, float]:
    """Our recipe on the same windows."""
    over = {"quantize.group_size": setup.group} if scheme.grouped else {}
    recipe = Recipe.load(
        scheme.recipe, {"calibrate.samples": setup.samples, "calibrate.length": setup.length, **over}
    )
    out = setup.work / f"compress-{scheme.recipe}"
    if not out.exists():
        compress.compress(setup.model, recipe, out, data=setup.calibration)
    return evaluated(out, setup)


def peer(tool: str, method: str, options: Mapping[str, Any], setup: Setup, group: int) -> dict[str, float]:
    """Another tool in its own environment; the figures that its runner notes, or those of the folder that it writes."""
    label = "-".join([tool, method, str(options.get("label", ""))]).rstrip("-")
    out, job, events = (setup.work / f"{label}{suffix}" for suffix in ("", ".job.json", ".events.jsonl"))
    described = {
        "model": setup.model,
        "tokens": setup.tokens,
        "text": setup.calibration,
        "out": out,
        "events": events,
        "method": method,
        "bits": 4,
        "group": group,
        "symmetric": True,
        "sparsity": 0.0,
        "pattern": "0:0",
        "threads": 1,
        "batch": 8 if tool == "autoround" else 1,
        "samples": setup.samples,
        "length": setup.length,
        "seed": 0,
        "options": {**options, "ids": str(setup.ids), "dense": str(setup.dense)},
    }
    job.write_text(json.dumps(described, default=str, indent=1), encoding="utf-8")
    runner = {"autoround": "run_autoround_scheme.py", "modelopt": "run_modelopt.py"}.get(
        tool, PEERS[tool].runner
    )
    if not out.exists():
        events.unlink(missing_ok=True)
        command = [str(python_of(PEERS[tool], setup.work.parent)), str(RUNNERS / runner), str(job)]
        alone = {key: value for key, value in fixed_threads(1).items() if key != "PYTHONPATH"}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=alone, errors="replace"
        )
        if done.returncode:
            raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1][:300])
    noted = (
        [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
        if events.exists()
        else []
    )
    found = next((row for row in noted if "kl" in row), None)
    return found or evaluated(out, setup)


def entries(
    name: str, scheme: Scheme, setup: Setup, tools: Sequence[str]
) -> list[tuple[str, str, dict[str, Any]]]:
    """Tool, method and options of every peer that has the scheme."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    if "llmcompressor" in tools:
        asked = {"scheme": scheme.preset, "label": name, **({"group": setup.group} if scheme.grouped else {})}
        methods = ["rtn", "gptq", *(["smoothquant-gptq"] if "A8" in name else [])]
        found += [("llmcompressor", method, asked) for method in methods]
    if "modelopt" in tools and scheme.modelopt:
        found.append(("modelopt", "ptq", {**scheme.modelopt, "label": name}))
    if "autoround" in tools:
        grid = {**scheme.autoround, **({"group_size": setup.group} if scheme.grouped else {})}
        method = "signround" if setup.iterations else "rtn"
        found.append(("autoround", method, {"scheme": grid, "iterations": setup.iterations, "label": name}))
    return found


def schemes_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Ours and every peer's KL by scheme, and ours as a share of the best peer's beside the bar."""
    return table(HEAD, scheme_cells(rows))


def scheme_cells(rows: Sequence[Mapping[str, Any]]) -> list[tuple[object, ...]]:
    """The rows of :func:`schemes_table`."""
    cells: list[tuple[object, ...]] = []
    for name, scheme in SCHEMES.items():
        here = [row for row in rows if row["scheme"] == name]
        theirs = [row["kl"] for row in here if row["tool"] != "compress" and "kl" in row]
        for row in here:
            mine = row["tool"] == "compress" and "kl" in row
            share = f"{row['kl'] / min(theirs):.2f}" if mine and theirs else None
            kl = f"{row['kl']:.5f}" if "kl" in row else f"fails: {row['error']}".replace("|", "/")
            top1 = f"{row['top1']:.1%}" if "top1" in row else None
            cells.append(
                (name, f"{row['tool']} {row['method']}", kl, top1, share, scheme.bar if mine else None)
            )
    return cells


def main() -> None:
    """Run what is not there yet, print, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--name", required=True, help="benchmarks/results/schemes-NAME.json")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--heldout", required=True, type=Path)
    parser.add_argument("--schemes", nargs="*", default=list(SCHEMES))
    parser.add_argument("--tools", nargs="*", default=["compress", "llmcompressor", "modelopt", "autoround"])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--group", type=int, default=64, help="of W4A8's weights")
    parser.add_argument("--iterations", type=int, default=200, help="of AutoRound; 0 rounds to nearest")
    parser.add_argument("--work", type=Path, default=Path("build/peers"))
    options = parser.parse_args()
    model = embedded_model() if options.model == EMBEDDED else Path(options.model)
    work = (options.work / f"schemes-{options.name}").resolve()
    shape = (options.samples, options.length, options.group)
    setup = Setup(model, options.calibration, *shape, work, options.iterations)
    setup.prepare(options.heldout, options.windows, options.length)
    path = RESULTS / f"schemes-{options.name}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    for name in options.schemes:
        scheme = SCHEMES[name]
        asked: list[tuple[str, str, dict[str, Any]]] = []
        if "compress" in options.tools:
            asked.append(("compress", scheme.recipe, {}))
        for tool, method, arguments in [*asked, *entries(name, scheme, setup, options.tools)]:
            key = (name, tool, method)
            if any((row["scheme"], row["tool"], row["method"]) == key and "kl" in row for row in rows):
                continue
            try:
                figures: dict[str, Any] = (
                    ours(scheme, setup)
                    if tool == "compress"
                    else peer(tool, method, arguments, setup, setup.group)
                )
            except RuntimeError as error:
                figures = {"error": str(error)}
            rows = [row for row in rows if (row["scheme"], row["tool"], row["method"]) != key]
            rows.append({"scheme": name, "tool": tool, "method": method, **figures})
            print(rows[-1], flush=True)
            facts = {key: getattr(options, key) for key in ("samples", "length", "windows", "group")}
            write_results(f"schemes-{options.name}", {"model": options.name, **facts, "rows": rows})
    print(schemes_table(rows))


if __name__ == "__main__":
    main()
