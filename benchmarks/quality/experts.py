"""Ways to have fewer experts, side by side: ``python -m benchmarks.quality.experts FOLDER``.

``FOLDER`` holds a mixture of experts, as ``benchmarks.quality.upcycled`` makes it. At three quarters and half of the routed
experts: left out at random, by how many tokens are sent to them, and by REAP; merged as ``experts_by: merge`` does it, and
merged without one of its parts (neurons as they lie, experts of any cluster, all weights alike). KL(dense ‖ smaller) in nats a
token, in fp32, on the first windows of the embedded held-out text. One row for each seed of the calibration windows. Prints a
table and writes ``benchmarks/results/experts-<model>.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common import table, write_results
from compress import Recipe
from compress.assets import embedded_text
from compress.checkpoint.source import Source, open_source
from compress.evaluation.windows import text_windows
from compress.models.skeleton import Skeleton, open_skeleton
from compress.pipeline.calibration import draw_corpus
from compress.prune import merge_experts
from compress.prune.expert_likeness import expert_likeness
from compress.prune.expert_saliency import By, expert_saliency
from compress.prune.experts import RoutedExperts, routed_experts, without_experts
from compress.prune.merge_experts import merged_experts

SHARES = (0.75, 0.5)


def sources(
    skeleton: Skeleton, routed: RoutedExperts, tokens: Tensor, seed: int, folder: Path
) -> Iterator[tuple[str, Source]]:
    """Label → the smaller model, one after the other.

    Args:
        skeleton: the model.
        routed: its experts.
        tokens: int64 ``[samples, length]``, to score and compare experts on.
        seed: for what is left to chance.
        folder: for merged experts.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = len(routed.owners)
    random = [torch.rand(routed.total, generator=generator).tolist() for _ in range(blocks)]
    yield "left out at random", without_experts(skeleton, routed, [routed.best(one) for one in random])
    names: tuple[tuple[By, str], ...] = (("frequency", "left out by frequency"), ("reap", "left out by REAP"))
    for by, label in names:
        saliency = expert_saliency(skeleton, routed, tokens, by, device="cpu", dtype=torch.float32)
        yield label, without_experts(skeleton, routed, [routed.best(one) for one in saliency])
    likeness = expert_likeness(skeleton, routed, tokens, device="cpu", dtype=torch.float32)
    yield "merged", merged_experts(skeleton, routed, likeness, folder)
    apart = [replace(one, distances=_symmetric(routed.total, generator)) for one in likeness]
    yield "merged, clusters at random", merged_experts(skeleton, routed, apart, folder)
    with patch.object(merge_experts, "matched", lambda rows, _: torch.arange(len(rows))):
        yield "merged, neurons as they lie", merged_experts(skeleton, routed, likeness, folder)
    with patch.object(merge_experts, "_merged", lambda *_: {}):
        yield "clusters, their leaders alone", merged_experts(skeleton, routed, likeness, folder)


def main() -> None:
    """Measure, print, record."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    skeleton = open_skeleton(open_source(arguments.model))
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    text = embedded_text("heldout").read_text(encoding="utf-8")
    windows = text_windows(text, tokenizer, length=arguments.window_length, limit=arguments.windows)
    dense = list(_logits(arguments.model, windows))
    loss = _loss(dense, windows)
    calibrate = {"samples": arguments.samples, "length": arguments.length}
    recipe = Recipe.parse({"name": "x", "calibrate": calibrate, "width_pruning": {"experts": 0.5}})
    found: dict[str, dict[str, list[float]]] = {}
    for seed in map(int, arguments.seeds.split(",")):
        tokens = draw_corpus(skeleton, recipe, seed).tokens
        for share in SHARES:
            routed = routed_experts(skeleton, share)
            with tempfile.TemporaryDirectory() as folder:
                for label, source in sources(skeleton, routed, tokens, seed, Path(folder)):
                    kl = _divergence(dense, source, windows)
                    found.setdefault(label, {}).setdefault(f"{share:.0%}", []).append(kl)
                    print(f"seed {seed}: {share:.0%}, {label}: {kl:.4f}", flush=True)
    conditions = {key: value for key, value in vars(arguments).items() if key not in ("model", "seeds")}
    name = f"experts-{arguments.model.name}"
    result = {
        **conditions,
        "seeds": arguments.seeds,
        "experts": routed.total,
        "dense_loss": loss,
        "kl": found,
    }
    write_results(name, result)
    rows = [[label, *(_shown(own[f"{share:.0%}"]) for share in SHARES)] for label, own in found.items()]
    print(f"loss of the dense model: {loss:.4f} nats a token")
    print(table(["", *(f"{share:.0%} of {routed.total} experts" for share in SHARES)], rows))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=256, help="of the calibration windows")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--window-length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _symmetric(total: int, generator: torch.Generator) -> Tensor:
    numbers = torch.rand(total, total, generator=generator, dtype=torch.float64)
    return numbers + numbers.T


def _divergence(dense: Sequence[Tensor], source: Source, windows: Tensor) -> float:
    """Mean of KL(dense ‖ smaller), in nats a token."""
    with tempfile.TemporaryDirectory() as folder:
        tensors = {name: source.read(name).clone().contiguous() for name in source.headers}
        save_file(tensors, str(Path(folder) / "model.safetensors"), metadata={"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(source.config), encoding="utf-8")
        found = [
            (whole.float().exp() * (whole.float() - smaller.float())).sum(-1).mean()
            for whole, smaller in zip(dense, _logits(Path(folder), windows), strict=True)
        ]
    return float(torch.stack(found).mean())


@torch.no_grad()
def _logits(folder: Path, windows: Tensor) -> Iterator[Tensor]:
    """Logarithms of probabilities, fp32 ``[length, vocabulary]``, window by window."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for window in windows:
        yield model(window[None]).logits[0].log_softmax(-1)


def _loss(dense: Sequence[Tensor], windows: Tensor) -> float:
    found = [-own[:-1].gather(1, window[1:, None]).mean() for own, window in zip(dense, windows, strict=True)]
    return float(torch.stack(found).mean())


def _shown(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"


if __name__ == "__main__":
    main()
