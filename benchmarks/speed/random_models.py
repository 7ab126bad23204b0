"""Random Llama-shaped checkpoints of any size, written tensor by tensor: never more than one tensor is in memory."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama: a block holds ``(2 + 2 kv_heads / heads) hidden² + 3 hidden ffn`` parameters.

    ``kv_heads`` are as many as ``heads`` where it is None; ``tied``: the head is the embedding.
    """

    hidden: int
    ffn: int
    heads: int
    blocks: int
    vocabulary: int
    kv_heads: int | None = None
    tied: bool = True

    @property
    def kv_width(self) -> int:
        """Rows of the keys' and values' projections."""
        return (self.kv_heads or self.heads) * (self.hidden // self.heads)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block's linears in bf16."""
        return 2 * self.hidden * (2 * self.hidden + 2 * self.kv_width + 3 * self.ffn)


def write_model(folder: Path, shape: Shape, tokenizer: Path, *, seed: int = 0) -> int:
    """Write a random bf16 checkpoint, one shard a block; return the bytes of its weights.

    ``tokenizer`` is a folder whose tokenizer files are copied; its vocabulary must fit into ``shape.vocabulary``.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in COPIED:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=1), encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)
    count = shape.blocks + 1
    places: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(_shards(shape), start=1):
        file = f"model-{number:05d}-of-{count:05d}.safetensors"
        total += _write_shard(folder / file, tensors, generator)
        places |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads or shape.heads,
        "head_dim": shape.hidden // shape.heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def _shards(shape: Shape) -> Iterator[dict[str, tuple[int, ...]]]:
    h, f, kv = shape.hidden, shape.ffn, shape.kv_width
    outside: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, h)}
    if not shape.tied:
        outside["lm_head.weight"] = (shape.vocabulary, h)
    yield {**outside, "model.norm.weight": (h,)}
    linears = {
        "self_attn.q_proj": (h, h),
        "self_attn.k_proj": (kv, h),
        "self_attn.v_proj": (kv, h),
        "self_attn.o_proj": (h, h),
        "mlp.gate_proj": (f, h),
        "mlp.up_proj": (f, h),
        "mlp.down_proj": (h, f),
    }
    norms = {"input_layernorm": (h,), "post_attention_layernorm": (h,)}
    for block in range(shape.blocks):
        yield {f"model.layers.{block}.{name}.weight": size for name, size in {**norms, **linears}.items()}


def _write_shard(path: Path, tensors: dict[str, tuple[int, ...]], generator: torch.Generator) -> int:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, size in tensors.items():
        end = offset + 2 * torch.Size(size).numel()
        entries[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for size in tensors.values():
            file.write(_values(size, generator).view(torch.uint8).numpy().data)
    return offset


def _values(size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    return torch.randn(size, generator=generator).mul_(0.02).to(torch.bfloat16)
