"""Logits of llama.cpp against those of transformers, for a tiny random model of every architecture that we write as GGUF.

``python -m benchmarks.servers.gguf_models --llama.cpp PYTHON [--kinds TYPE …]`` writes each model in fp32, exports it, and
compares log-probabilities on random tokens, more of them than any window of attention. The same models go through once more in
Q8_0, where llama.cpp rounds activations, too. Results go to ``benchmarks/results/gguf-models.json``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from benchmarks.common import table, write_results
from benchmarks.servers.programs import run_llamacpp
from benchmarks.servers.runners.children import sentence
from benchmarks.zoo.configs import VOCABULARY, tiny_config
from benchmarks.zoo.models import write_tokenizer
from compress import Recipe, compress, export
from compress.formats.gguf.architectures import ARCHITECTURES

RESULT = "gguf-models"
WINDOWS, LENGTH = 2, 48
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None},
    "phi3": {"sliding_window": None},
    "starcoder2": {"sliding_window": None},
    "qwen3_moe": {"norm_topk_prob": True},
    "smollm3": {"num_hidden_layers": 4},
    "gemma3_text": {"num_hidden_layers": 6},
    # Rows of a single block of Q8_0 come out wrong in llama.cpp's products.
    "deepseek_v2": {"q_lora_rank": 64, "kv_lora_rank": 64},
    "deepseek_v3": {"q_lora_rank": 64, "kv_lora_rank": 64, "n_group": 2, "topk_group": 1},
}
"""Model type → settings besides those of the zoo: every kind of layer occurs, and no window that llama.cpp does not have."""
ROUNDED = Recipe.parse(
    {
        "name": "round",
        "format": "gguf",
        "steps": [{"targets": ["linear", "experts"], "quantize": {"type": "q8_0"}, "solver": "nearest"}],
    }
)


def write(kind: str, folder: Path) -> Any:
    """A tiny random model of type ``kind`` in fp32 with its tokenizer in ``folder``; the model as it is read back."""
    config = tiny_config(kind)
    if changes := SETTINGS.get(kind):
        kept = {k: v for k, v in config.to_dict().items() if k not in ("layer_types", "no_rope_layers")}
        config = type(config)(**{**kept, **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # norms and biases start at 1 and 0, which would hide mistakes
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(parameter + 0.1 * noise if parameter.ndim == 1 else 0.1 * noise)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def log_probabilities(model: Any, ids: Any) -> Any:
    """fp64 ``[windows, length, vocabulary]`` from transformers."""
    logits = model(input_ids=torch.as_tensor(ids), use_cache=False).logits
    return logits.double().log_softmax(-1).numpy()


def compared(file: Path, expected: Any, llamacpp: Path, folder: Path) -> dict[str, float]:
    """Differences of llama.cpp's log-probabilities from ``expected``: the largest, the mean, and the KL divergence."""
    run_llamacpp(llamacpp, "logits", file, folder / "ids.npy", folder / "out.npy", "float32")
    found = np.load(folder / "out.npy").astype(np.float64)
    apart = np.abs(found - expected)
    kl = (np.exp(expected) * (expected - found)).sum(-1)
    return {"largest": float(apart.max()), "mean": float(apart.mean()), "kl": float(kl.mean())}


def measure(kind: str, llamacpp: Path, folder: Path) -> dict[str, Any]:
    """The row of a model type."""
    generator = np.random.default_rng(0)
    ids = generator.integers(2, VOCABULARY, (WINDOWS, LENGTH))
    np.save(folder / "ids.npy", ids)
    row: dict[str, Any] = {"type": kind, "architecture": ARCHITECTURES[kind].name}
    try:
        expected = log_probabilities(write(kind, folder / "dense"), ids)
        export(folder / "dense", folder / "fp32", overwrite=True)
        row["fp32"] = compared(folder / "fp32" / "model.gguf", expected, llamacpp, folder)
        compress(folder / "dense", ROUNDED, folder / "q8_0", overwrite=True)
        row["q8_0"] = compared(folder / "q8_0" / "model.gguf", expected, llamacpp, folder)
    except Exception as error:  # one model type must not end the others
        row["error"] = sentence(error)
    return row


def models_table(rows: list[dict[str, Any]]) -> str:
    """Differences by model type."""
    cells = [
        (
            f"`{row['type']}`",
            row["architecture"],
            *(
                f"{row[kind][key]:.2g}" if kind in row else None
                for kind in ("fp32", "q8_0")
                for key in ("largest", "kl")
            ),
            row.get("error"),
        )
        for row in rows
    ]
    head = (
        "model type",
        "architecture",
        "fp32: largest difference",
        "KL",
        "Q8_0: largest difference",
        "KL",
        "error",
    )
    if not any(row.get("error") for row in rows):
        head, cells = head[:-1], [cell[:-1] for cell in cells]
    return table(head, cells)


def main() -> None:
    """Compare, record, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama.cpp", dest="llamacpp", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--kinds", nargs="*", default=list(ARCHITECTURES))
    options = parser.parse_args()
    logging.set_verbosity_error()
    rows = []
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(kind, options.llamacpp, Path(folder)))
        print(rows[-1], flush=True)
    if set(options.kinds) == set(ARCHITECTURES):
        write_results(RESULT, {"windows": WINDOWS, "length": LENGTH, "rows": rows})
    print(models_table(rows))


if __name__ == "__main__":
    main()
