"""llama.cpp as a witness: our GGUF files beside those of its own quantizer, the same type for every tensor.

``python -m benchmarks.servers.gguf_bars --model MODEL --calibrate TEXT --text TEXT --llamacpp PYTHON`` runs each recipe, has
llama.cpp quantize the bf16 file with an importance matrix from the same calibration windows, and takes the log-probabilities of
all files from llama.cpp itself. The figure is KL(bf16 file ‖ file) in nats, mean over tokens. The floor is what 8-bit weights
leave: the rounding of activations in llama.cpp's products, and that of the embeddings.

PYTHON is an interpreter with ``llama-cpp-py-sync`` and numpy (see ``runners/llamacpp.py``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.common import table, write_results
from benchmarks.servers.programs import run_llamacpp
from compress import Recipe, compress, export
from compress.assets import EMBEDDED, embedded_model
from compress.calibrate.corpus import load_corpus
from compress.checkpoint.gguf import read_gguf_header
from compress.checkpoint.source import open_source
from compress.formats.gguf.imatrix import Importance, write_imatrix
from compress.formats.gguf.placement import place
from compress.models.skeleton import open_skeleton
from compress.planning.make import facts_of
from compress.text.tokenize import load_tokenizer

BARS = {"q4_0": 0.6, "q4_k": 0.6, "q3_k": 0.45, "q2_k": 0.45}
RECIPES = {"q4_0": "q4_0", "q4_k": "q4_k_m", "q3_k": "q3_k_m", "q2_k": "q2_k", "q8_0": "q8_0"}
"""Type → the shipped recipe whose solvers are taken."""
_OUTSIDE = {"embeddings", "head"}


@dataclass(frozen=True)
class Setup:
    """What all rows share: the model, its calibration windows, where files go, and llama.cpp's interpreter."""

    model: Path
    calibrate: str
    samples: int
    length: int
    work: Path
    llamacpp: Path

    def log_probabilities(self, file: Path) -> Any:
        """fp16 ``[windows, length, vocabulary]``, mapped from a file."""
        out = file.with_suffix(".npy")
        run_llamacpp(self.llamacpp, "logits", file, self.work / "ids.npy", out)
        return np.load(out, mmap_mode="r")


def recipe_of(kind: str, setup: Setup) -> Recipe:
    """A shipped recipe's solvers with one type for every linear layer, embeddings and head in Q6_K; q8_0 is rounded."""
    shipped = Recipe.load(RECIPES[kind]).model_dump(exclude_unset=True)
    steps = [
        {**step, "quantize": {"type": "q6_k" if _OUTSIDE & {*step["targets"]} else kind, "fallback": True}}
        for step in shipped["steps"]
    ]
    calibrate = {"data": setup.calibrate, "samples": setup.samples, "length": setup.length}
    return Recipe.parse({**shipped, "calibrate": calibrate, "steps": steps})


def importance(setup: Setup, into: Path) -> None:
    """llama.cpp's importance matrix from the calibration windows of the dense model, as `.npz` and as a file of its own."""
    source = open_source(setup.model)
    skeleton = open_skeleton(source)
    places = place(facts_of(skeleton)).weights
    tensors = {
        view.module: places[view.name].tensor for view in skeleton.views if view.kind in ("linear", "conv1d")
    }
    corpus = load_corpus(
        setup.calibrate, load_tokenizer(setup.model), samples=setup.samples, length=setup.length, seed=0
    )
    model = AutoModelForCausalLM.from_pretrained(setup.model, dtype=torch.float32)
    sums: dict[str, torch.Tensor] = {}

    def watch(tensor: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            sums[tensor] = sums.get(tensor, torch.zeros(rows.shape[1])) + rows.square().sum(0)

        return hook

    for name, tensor in tensors.items():
        model.get_submodule(name).register_forward_hook(watch(tensor))
    with torch.no_grad():
        for window in corpus.tokens:
            model(window.unsqueeze(0))
    count = float(corpus.tokens.numel())
    np.savez(into, **{name: (total / count).numpy() for name, total in sums.items()})
    found = {name: Importance(total.view(1, -1), torch.tensor([count])) for name, total in sums.items()}
    write_imatrix(
        into.with_suffix(".imatrix"),
        found,
        dataset=setup.calibrate,
        chunks=setup.samples,
        chunk_size=setup.length,
    )


def divergence(reference: Any, other: Any) -> tuple[float, float]:
    """KL(reference ‖ other) in nats and the share of tokens with the same favourite."""
    divergences, agreements = [], []
    for window in range(len(reference)):
        ours, theirs = (logs[window].astype(np.float64) for logs in (reference, other))
        divergences.append((np.exp(ours) * (ours - theirs)).sum(-1).mean())
        agreements.append((ours.argmax(-1) == theirs.argmax(-1)).mean())
    return float(np.mean(divergences)), float(np.mean(agreements))


def measure(setup: Setup, kind: str, reference: Any) -> dict[str, Any]:
    """Our file of a type beside llama.cpp's."""
    out = setup.work / kind
    gradients = setup.work / "gradients"  # the same for every type
    made = compress(setup.model, recipe_of(kind, setup), out, overwrite=True, gradients=gradients)
    ours = out / "model.gguf"
    types = {t.name: t.type for t in read_gguf_header(ours).tensors if isinstance(t.type, str)}
    (setup.work / "types.json").write_text(json.dumps(types))
    theirs = setup.work / f"{kind}-llamacpp.gguf"
    run_llamacpp(
        setup.llamacpp,
        "quantize",
        setup.work / "bf16" / "model.gguf",
        theirs,
        setup.work / "types.json",
        setup.work / "i.npz",
    )
    (our_kl, our_top), (their_kl, their_top) = (
        divergence(reference, setup.log_probabilities(file)) for file in (ours, theirs)
    )
    return {
        "type": kind,
        "kl": our_kl,
        "kl_llamacpp": their_kl,
        "ratio": our_kl / their_kl,
        "top1": our_top,
        "top1_llamacpp": their_top,
        "bytes": ours.stat().st_size,
        "seconds": made.report.seconds,
        "bar": BARS.get(kind),
    }


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--calibrate", default=EMBEDDED)
    parser.add_argument("--text", required=True, type=Path, help="held-out text")
    parser.add_argument("--llamacpp", required=True, type=Path, help="Python with llama.cpp")
    parser.add_argument("--work", type=Path, default=Path("build/servers"))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--types", nargs="*", default=list(BARS))
    parser.add_argument("--record", help="benchmarks/results/gguf-NAME.json")
    parser.add_argument("--name", default=EMBEDDED, help="what the results call the model")
    options = parser.parse_args()
    model = embedded_model() if options.model == EMBEDDED else Path(options.model)
    setup = Setup(model, options.calibrate, options.samples, options.length, options.work, options.llamacpp)
    setup.work.mkdir(parents=True, exist_ok=True)
    export(model, setup.work / "bf16", overwrite=True)
    importance(setup, setup.work / "i.npz")
    length = min(512, options.length)
    ids = load_tokenizer(model)(options.text.read_text(encoding="utf-8"), add_special_tokens=False)[
        "input_ids"
    ]
    np.save(
        setup.work / "ids.npy", np.array(ids[: options.windows * length]).reshape(options.windows, length)
    )
    reference = setup.log_probabilities(setup.work / "bf16" / "model.gguf")
    rows: list[dict[str, Any]] = []
    for kind in ["q8_0", *options.types]:
        rows.append(measure(setup, kind, reference))
        print(bars_table(rows), flush=True)
        if options.record:
            facts = {
                "model": options.name,
                "samples": options.samples,
                "length": options.length,
                "windows": options.windows,
                "window": length,
            }
            write_results(f"gguf-{options.record}", {**facts, "floor": rows[0]["kl"], "rows": rows})


def bars_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Ours beside llama.cpp's, by type."""
    head = ("type", "MB", "KL", "KL of llama.cpp", "ratio", "bar", "top-1", "top-1 of llama.cpp")
    cells = [
        (
            row["type"].upper(),
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['kl']:.4f}",
            f"{row['kl_llamacpp']:.4f}",
            f"{row['ratio']:.2f}",
            row["bar"],
            f"{row['top1']:.1%}",
            f"{row['top1_llamacpp']:.1%}",
        )
        for row in rows
    ]
    return table(head, cells)


if __name__ == "__main__":
    main()
