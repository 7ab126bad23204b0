"""Forecasts of memory, disk and time for models by their shapes alone: no weights are needed, and none are written.

``python -m benchmarks.forecasts`` plans recipes for checkpoints that have headers and no content (files with holes, which take
no disk), and writes the tables of docs/forecasts.md. Times are those of one core of a stated machine; they are forecasts.
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.common import REPOSITORY, write_between
from compress.checkpoint.source import open_source
from compress.models.skeleton import open_skeleton
from compress.planning.duration import work_of
from compress.planning.make import make_plan
from compress.recipe.recipe import Recipe
from compress.system.machine import Machine
from compress.system.units import in_bytes, roughly

PAGE = REPOSITORY / "docs" / "forecasts.md"
RECIPES = ("w4-rtn", "w4-gptq", "sparse50-awp")
CORE = Machine({"bfloat16": 99e9, "float32": 43e9}, bandwidth=33e9, read=1e9, write=3e8)
"""One core of an AMD EPYC with AVX-512 and bf16 products, as measured on 2026-11-26; the disk's rates are assumed."""
DAY = 86400


@dataclass(frozen=True)
class Form:
    """Sizes of a decoder; with ``experts`` every block's FFN is a mixture of them, each ``ffn`` wide."""

    label: str
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    blocks: int
    vocabulary: int
    head: int = 128
    experts: int = 0
    chosen: int = 0

    @property
    def config(self) -> dict[str, object]:
        """What ``config.json`` says: a Llama, or a Qwen3-MoE."""
        shared: dict[str, object] = {
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 8192,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        }
        if not self.experts:
            return {**shared, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        mixture = {
            "moe_intermediate_size": self.ffn,
            "num_experts": self.experts,
            "num_experts_per_tok": self.chosen,
            "decoder_sparse_step": 1,
        }
        return {**shared, **mixture, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}

    def block(self, index: int) -> dict[str, tuple[int, ...]]:
        """Tensor → shape of one block."""
        h, f, width, kv = self.hidden, self.ffn, self.heads * self.head, self.kv_heads * self.head
        ffn = {"gate_proj": (f, h), "up_proj": (f, h), "down_proj": (h, f)}
        found: dict[str, tuple[int, ...]] = {
            "input_layernorm": (h,),
            "post_attention_layernorm": (h,),
            "self_attn.q_proj": (width, h),
            "self_attn.k_proj": (kv, h),
            "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, width),
        }
        if not self.experts:
            found |= {f"mlp.{name}": shape for name, shape in ffn.items()}
        else:
            found |= {
                "self_attn.q_norm": (self.head,),
                "self_attn.k_norm": (self.head,),
                "mlp.gate": (self.experts, h),
            }
            for expert in range(self.experts):
                found |= {f"mlp.experts.{expert}.{name}": shape for name, shape in ffn.items()}
        return {f"model.layers.{index}.{name}.weight": shape for name, shape in found.items()}

    def shards(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """The tensors of every file: what is outside of the blocks, then the blocks."""
        outside = (self.vocabulary, self.hidden)
        yield {
            "model.embed_tokens.weight": outside,
            "lm_head.weight": outside,
            "model.norm.weight": (self.hidden,),
        }
        for index in range(self.blocks):
            yield self.block(index)


FORMS = (
    Form("8 B, as Llama 3.1", 4096, 14336, 32, 8, 32, 128256),
    Form("70 B, as Llama 3.1", 8192, 28672, 64, 8, 80, 128256),
    Form("405 B, as Llama 3.1", 16384, 53248, 128, 8, 126, 128256),
    Form("30 B in 128 experts, as Qwen3-30B-A3B", 2048, 768, 32, 4, 48, 151936, experts=128, chosen=8),
    Form("1 T in 384 experts, as Kimi K2's", 7168, 2048, 64, 8, 61, 163840, experts=384, chosen=8),
)


def write_headers(folder: Path, form: Form) -> None:
    """A checkpoint without content: true headers, and holes in the place of the numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(form.config), encoding="utf-8")
    places: dict[str, str] = {}
    for number, tensors in enumerate(form.shards()):
        name = f"model-{number:05d}.safetensors"
        places |= dict.fromkeys(tensors, name)
        entries: dict[str, object] = {}
        offset = 0
        for tensor, shape in tensors.items():
            end = offset + 2 * torch.Size(shape).numel()
            entries[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + offset)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@dataclass(frozen=True)
class Forecast:
    """Bytes of the source and of the output, of memory, and seconds of :data:`CORE`."""

    source: float
    output: float
    memory: float
    seconds: float


def forecast(form: Form, recipe: str) -> Forecast:
    """What a plan and its estimate of the time say, whatever the number of blocks."""
    with tempfile.TemporaryDirectory(prefix="compress-forecast-") as folder:
        write_headers(Path(folder), form)
        skeleton = open_skeleton(open_source(Path(folder)))
        plan = make_plan(skeleton, Recipe.load(recipe), dtype=torch.bfloat16)
        work = work_of(skeleton, plan, torch.bfloat16)
    assert work is not None
    return Forecast(plan.source_bytes, plan.total_bytes, plan.peak_memory, work.seconds(CORE))


def deep(form: Form, recipe: str) -> Forecast:
    """The same from plans of one and of two blocks: all are alike, so that sizes and times grow by the same for each."""
    one, two = (forecast(replace(form, blocks=count), recipe) for count in (1, 2))

    def grown(first: float, second: float) -> float:
        return first + (form.blocks - 1) * (second - first)

    return Forecast(
        grown(one.source, two.source),
        grown(one.output, two.output),
        two.memory,
        grown(one.seconds, two.seconds),
    )


def row(form: Form, recipe: str) -> list[str]:
    """One line of the table."""
    found = deep(form, recipe)
    days = roughly(found.seconds) if found.seconds < 3 * DAY else f"{found.seconds / DAY:,.0f} days"
    sizes = (found.source, found.output, found.memory)
    return [form.label, f"`{recipe}`", *map(in_bytes, sizes), days]


def table(rows: list[list[str]]) -> str:
    """A Markdown table."""
    names = ["shape", "recipe", "source", "output", "memory", "time of one core"]
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Plan everything that is asked for; write the page's table, or print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", default="", help="shapes whose label begins so")
    options = parser.parse_args()
    rows = [row(form, recipe) for form in FORMS if form.label.startswith(options.only) for recipe in RECIPES]
    if options.only:
        print(table(rows))
        return
    write_between(PAGE, "forecasts", table(rows))


if __name__ == "__main__":
    main()
