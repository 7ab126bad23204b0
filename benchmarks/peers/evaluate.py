"""The one evaluator of the comparison: plain transformers, fp32, the reference and a checkpoint side by side.

``python evaluate.py JOB.json``: the job names the reference, the checkpoints, the text and the windows; prints one JSON
object by checkpoint. It knows nothing of the tools that wrote the checkpoints: what plain transformers (with
compressed-tensors) cannot load is decoded to a dense checkpoint by its own tool first.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

BATCH = 8


def load(path: str) -> torch.nn.Module:
    """A checkpoint as a dense fp32 model."""
    config = AutoConfig.from_pretrained(path)
    stored = getattr(config, "quantization_config", None)
    extra: dict[str, Any] = {}
    if stored is not None and stored.get("quant_method") == "compressed-tensors":
        # Asymmetric pack-quantized weights load only when decompression is asked for at once.
        extra["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    elif stored is not None:
        raise SystemExit(
            f"{path}: plain transformers is not asked to load {stored.get('quant_method')!r} here"
        )
    model, report = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, **extra
    )
    tied = getattr(model, "all_tied_weights_keys", {})
    missing = set(report["missing_keys"]) - set(tied)
    if missing:
        raise SystemExit(f"{path}: {len(missing)} weights were not in the checkpoint, first {min(missing)}")
    return model.eval()


def headers(path: str) -> dict[str, int]:
    """Bytes of every tensor of a safetensors checkpoint, by name, read from the headers."""
    sizes: dict[str, int] = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            for name, entry in json.loads(stream.read(length)).items():
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]
                    sizes[name] = end - begin
    return sizes


def linear_bytes(path: str, modules: set[str]) -> int:
    """Bytes on disk of everything that belongs to the named linears (codes, scales, zero points, shapes)."""
    prefixes = tuple(f"{module}." for module in modules)
    return sum(size for name, size in headers(path).items() if name.startswith(prefixes))


@torch.no_grad()
def compare(dense: torch.nn.Module, other: torch.nn.Module, windows: torch.Tensor) -> dict[str, float]:
    """KL(dense ‖ other) in nats by token, top-1 agreement, perplexity of both; windows int64 ``[n, length]``."""
    kl = same = loss = dense_loss = 0.0
    for batch in windows.split(BATCH):
        p = dense(batch).logits.float().log_softmax(-1)
        q = other(batch).logits.float().log_softmax(-1)
        kl += (p.exp() * (p - q)).sum().item()
        same += (p.argmax(-1) == q.argmax(-1)).sum().item()
        target = batch[:, 1:, None]
        loss -= q[:, :-1].gather(-1, target).sum().item()
        dense_loss -= p[:, :-1].gather(-1, target).sum().item()
    tokens = windows.numel()
    predicted = windows.shape[0] * (windows.shape[1] - 1)
    return {
        "kl": kl / tokens,
        "top1": same / tokens,
        "perplexity": math.exp(loss / predicted),
        "dense_perplexity": math.exp(dense_loss / predicted),
    }


def main() -> None:
    """Evaluate every checkpoint of the job against the reference."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["reference"])
    ids = tokenizer(Path(job["text"]).read_text(encoding="utf-8")).input_ids
    count = job["windows"] * job["length"]
    if len(ids) < count:
        raise SystemExit(f"{job['text']} has {len(ids)} tokens, {count} are needed")
    windows = torch.tensor(ids[:count]).view(job["windows"], job["length"])
    dense = load(job["reference"])
    head = dense.get_output_embeddings()
    modules = {name: module for name, module in dense.named_modules() if module is not head}
    linears = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
    found = {}
    for path, dense_copy in job["checkpoints"].items():
        figures = compare(dense, load(dense_copy), windows)
        found[path] = {
            **figures,
            "linear_bytes": linear_bytes(path, linears),
            "bytes": sum(headers(path).values()),
            "linear_parameters": sum(dense.get_submodule(name).weight.numel() for name in linears),
        }
    Path(job["out"]).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
