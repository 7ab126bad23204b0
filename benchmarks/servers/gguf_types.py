"""Types of every tensor in our mixes beside those that llama.cpp's own quantizer chooses, on widths that K-quants do not fit.

``python -m benchmarks.servers.gguf_types --llama.cpp PYTHON`` writes a random Llama of 30 layers whose hidden size is no
multiple of 256 (its FFN is), tied and not, has llama.cpp quantize the bf16 file by the name of each mix, and compares the types
with those of the plan. Results go to ``benchmarks/results/gguf-types.json``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import compress
from benchmarks.common import table, write_results
from benchmarks.servers.programs import run_llamacpp
from benchmarks.zoo.models import write_tokenizer
from compress.checkpoint.gguf import read_gguf_header
from compress.formats.gguf.placement import place

MIXES: Mapping[str, int] = {"q2_k": 10, "q3_k_m": 12, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18, "q8_0": 7}
"""Recipe → llama.cpp's number for its mix (``LLAMA_FTYPE``)."""
HIDDEN, FFN, LAYERS = 288, 768, 30


def write(folder: Path, *, tied: bool) -> Path:
    """A random Llama in bf16 with its tokenizer."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def planned_types(model: Path, recipe: str) -> dict[str, str]:
    """GGUF tensor → its type in the plan of a recipe."""
    plan = compress.plan(model, recipe)
    places = place(plan.facts).weights
    return {places[weight.name].tensor: weight.layout.type for weight in plan.weights}  # type: ignore[attr-defined]


def differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, list[str]]:
    """Tensor → llama.cpp's type and ours, where these differ."""
    return {name: [theirs[name], kind] for name, kind in ours.items() if theirs[name] != kind}


def compared(model: Path, work: Path, llamacpp: Path, recipe: str) -> dict[str, Any]:
    """The row of a mix."""
    out = work / f"{recipe}.gguf"
    run_llamacpp(llamacpp, "mix", work / "bf16" / "model.gguf", out, MIXES[recipe])
    theirs = {tensor.name: str(tensor.type) for tensor in read_gguf_header(out).tensors}
    ours = planned_types(model, recipe)
    return {"recipe": recipe, "tensors": len(ours), "different": differing(ours, theirs)}


def types_table(rows: list[dict[str, Any]]) -> str:
    """How many tensors have llama.cpp's type, by mix."""
    cells = [
        (
            row["recipe"],
            "tied" if row["tied"] else "not tied",
            f"{row['tensors'] - len(row['different'])} of {row['tensors']}",
        )
        for row in rows
    ]
    return table(("recipe", "head", "tensors of llama.cpp's type"), cells)


def main() -> None:
    """Compare, record, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama.cpp", dest="llamacpp", type=Path, required=True, metavar="PYTHON")
    options = parser.parse_args()
    logging.set_verbosity_error()
    rows: list[dict[str, Any]] = []
    for tied in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            model = write(work / "dense", tied=tied)
            compress.export(model, work / "bf16", overwrite=True)
            for recipe in MIXES:
                rows.append({**compared(model, work, options.llamacpp, recipe), "tied": tied})
                print(rows[-1], flush=True)
    write_results("gguf-types", {"hidden": HIDDEN, "ffn": FFN, "layers": LAYERS, "rows": rows})
    print(types_table(rows))


if __name__ == "__main__":
    main()
