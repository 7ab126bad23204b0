"""Mutations of a checkpoint's files: configuration, weights, index, tokenizer, and what stands in their places."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzzing.values import damaged, mutated, number, to_json, value
from benchmarks.fuzzing.world import WEIGHTS

Mutation = Callable[[Random, Path], str]
"""Changes files of a checkpoint's folder; returns what it did, in words."""

_DTYPES = (
    "BOOL",
    "U8",
    "I8",
    "I16",
    "U16",
    "I32",
    "I64",
    "U64",
    "F16",
    "BF16",
    "F32",
    "F64",
    "F8_E4M3",
    "F8_E5M2",
)
_DTYPES += ("F8_E8M0", "F4", "C64", "F128", "", "bf16")
_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads")
_SIZES += ("num_key_value_heads", "head_dim", "max_position_embeddings")
_MODEL_TYPES = (
    "mistral",
    "gpt2",
    "bert",
    "mamba",
    "t5",
    "mixtral",
    "qwen3",
    "vit",
    "clip",
    "whisper",
    "llava",
    "x",
    "../x",
)
_EXTRA: dict[str, tuple[Any, ...]] = {
    "architectures": (
        ["BertModel"],
        ["T5ForConditionalGeneration"],
        [],
        [3],
        "x",
        None,
        ["__import__"],
        ["Trainer"],
    ),
    "auto_map": (
        {"AutoModelForCausalLM": "modeling_x.X"},
        {"AutoConfig": "other/repo--x.X"},
        3,
        {"AutoConfig": None},
    ),
    "quantization_config": (
        {"quant_method": "gptq"},
        {"quant_method": 3},
        [],
        "x",
        {"quant_method": "compressed-tensors"},
    ),
    "dtype": ("int8", "float8_e4m3fn", "x", 3, ["float32"], "torch.bfloat16", "nn"),
    "torch_dtype": ("int64", "os", {}, "complex64"),
    "rope_scaling": ({"type": "linear"}, {"rope_type": "yarn", "factor": 0}, 3, {"factor": "x"}),
    "rope_parameters": ({"rope_type": "x"}, {"rope_type": "longrope"}, 3),
    "text_config": ({}, 3, {"model_type": "gpt2"}, None),
    "layer_types": ([], ["x"], ["full_attention"] * 7),
    "tie_word_embeddings": (True, "yes", 3),
    "compression_config": ({"quant_method": "x"}, 3),
}


def config_value(random: Random, folder: Path) -> str:
    """One place of the configuration."""
    path = folder / "config.json"
    data = json.loads(path.read_text())
    path.write_text(to_json(mutated(random, data)))
    return "config.json: one place changed"


def config_size(random: Random, folder: Path) -> str:
    """A size of the configuration."""
    path, key = folder / "config.json", random.choice(_SIZES)
    changed = {**json.loads(path.read_text()), key: number(random)}
    path.write_text(to_json(changed))
    return f"config.json: {key} {changed[key]}"


def config_type(random: Random, folder: Path) -> str:
    """Another architecture, or keys that change how the model is read."""
    path = folder / "config.json"
    data = json.loads(path.read_text())
    if random.random() < 0.4:
        data["model_type"] = random.choice(_MODEL_TYPES)
    else:
        key = random.choice(list(_EXTRA))
        data[key] = random.choice(_EXTRA[key]) if random.random() < 0.8 else value(random)
    path.write_text(to_json(data))
    return "config.json: another kind of model"


def damaged_file(random: Random, folder: Path) -> str:
    """The bytes of any small file."""
    names = [p.name for p in folder.iterdir() if p.is_file() and p.stat().st_size < 1 << 20]
    name = random.choice(sorted(names))
    (folder / name).write_bytes(damaged(random, (folder / name).read_bytes()))
    return f"{name}: damaged"


def tokenizer_value(random: Random, folder: Path) -> str:
    """One place of the tokenizer's files."""
    name = random.choice(("tokenizer.json", "tokenizer_config.json", "generation_config.json"))
    path = folder / name
    path.write_text(to_json(mutated(random, json.loads(path.read_text()))))
    return f"{name}: one place changed"


def tokenizer_class(random: Random, folder: Path) -> str:
    """What the tokenizer says of itself."""
    path = folder / "tokenizer_config.json"
    data = json.loads(path.read_text())
    key = random.choice(
        ("tokenizer_class", "bos_token", "eos_token", "added_tokens_decoder", "extra_special_tokens")
    )
    classes = (
        "BertTokenizer",
        "LlamaTokenizer",
        "T5Tokenizer",
        "GPT2Tokenizer",
        "WhisperTokenizer",
        "Trainer",
    )
    data[key] = (
        random.choice(classes) if key == "tokenizer_class" and random.random() < 0.6 else value(random)
    )
    path.write_text(to_json(data))
    return f"tokenizer_config.json: {key}"


def _read_weights(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _write_weights(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def header_entry(random: Random, folder: Path) -> str:
    """A tensor's entry: its dtype, shape, place or name."""
    header, data = _read_weights(folder / WEIGHTS)
    name = random.choice([name for name in header if name != "__metadata__"])
    entry = dict(header.pop(name))
    kind = random.choice(("dtype", "shape", "data_offsets", "name", "any", "none"))
    if kind == "dtype":
        entry["dtype"] = random.choice(_DTYPES)
    elif kind == "shape":
        entry["shape"] = random.choice(
            ([], entry["shape"][::-1], [*entry["shape"], 1], [1, *entry["shape"]], [number(random)])
        )
    elif kind == "data_offsets":
        entry["data_offsets"] = [number(random), number(random)]
    elif kind == "any":
        entry = mutated(random, entry)
    elif kind == "name":
        prefix, _, suffix = name.rpartition(".")
        name = random.choice(
            (f"{name}\0", "x" * 100_000, "", f"{prefix}.x", f"../{name}", f"{suffix}", "__metadata", "\ud800")
        )
    if kind != "none":
        header[name] = entry
    _write_weights(folder / WEIGHTS, to_json(header).encode(), data)
    return f"{WEIGHTS}: the {kind} of an entry"


def header_text(random: Random, folder: Path) -> str:
    """The header as bytes."""
    header, data = _read_weights(folder / WEIGHTS)
    _write_weights(folder / WEIGHTS, damaged(random, to_json(header).encode()), data)
    return f"{WEIGHTS}: header damaged"


def many_tensors(random: Random, folder: Path) -> str:
    """Many tensors more than the model has."""
    header, data = _read_weights(folder / WEIGHTS)
    count = random.choice((10, 1000, 20_000))
    width = random.choice((0, 2))
    for number_ in range(count):
        start = len(data) + width * number_
        header[f"extra.{number_}.weight"] = {
            "dtype": "BF16",
            "shape": [width // 2],
            "data_offsets": [start, start + width],
        }
    _write_weights(folder / WEIGHTS, json.dumps(header).encode(), data + bytes(width * count))
    return f"{WEIGHTS}: {count} tensors more"


def weight_bytes(random: Random, folder: Path) -> str:
    """The values of the tensors."""
    path = folder / WEIGHTS
    header, data = _read_weights(path)
    piece = random.choice((b"\xff", b"\x00", b"\x80\x7f", b"\xc0\x7f", b"\x7f"))
    start, length = random.randrange(len(data)), random.choice((2, 64, 4096, len(data)))
    changed = (
        data[:start] + (piece * length)[: max(0, min(length, len(data) - start))] + data[start + length :]
    )
    _write_weights(path, json.dumps(header).encode(), changed[: len(data)])
    return f"{WEIGHTS}: values changed"


def weights_cut(random: Random, folder: Path) -> str:
    """A file that is cut off, or goes on."""
    path = folder / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(
        data[: random.randrange(len(data))]
        if random.random() < 0.7
        else data + bytes(random.randrange(1, 99))
    )
    return f"{WEIGHTS}: cut off or too long"


def index(random: Random, folder: Path) -> str:
    """An index in the place of a single file."""
    header, _ = _read_weights(folder / WEIGHTS)
    shard = random.choice(
        ("model-00001-of-00001.safetensors", "../model.safetensors", "/etc/passwd", "x\0", "", WEIGHTS)
    )
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    data: Any = {"weight_map": {name: shard for name in header if name != "__metadata__"}}
    (folder / "model.safetensors.index.json").write_text(
        to_json(mutated(random, data) if random.random() < 0.5 else data)
    )
    return "an index"


def other_kind(random: Random, folder: Path) -> str:
    """A folder, a pipe, a dangling or looping link where a file should be; or a file that does not belong there."""
    name = random.choice(
        ("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json", "generation_config.json", "x.txt")
    )
    path = folder / name
    path.unlink(missing_ok=True)
    kind = random.choice(("folder", "pipe", "dangling", "loop", "outside", "missing"))
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "missing":
        path.symlink_to({"dangling": "none", "loop": name, "outside": "/etc/hostname"}[kind])
    return f"{name}: {kind}"


def leftover(random: Random, folder: Path) -> str:
    """Files of other formats and stale ones."""
    names = (
        "adapter_model.safetensors",
        "model-00009-of-00009.safetensors",
        "pytorch_model.bin",
        "original/x.pth",
        "a" * 250,
    )
    name = random.choice(names)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(bytes(random.choice((0, 10, 100_000))))
    return f"{name[:40]}: left over"


MUTATIONS: tuple[Mutation, ...] = (
    config_value,
    config_value,
    config_size,
    config_size,
    config_type,
    config_type,
    damaged_file,
    tokenizer_value,
    tokenizer_value,
    tokenizer_class,
    header_entry,
    header_entry,
    header_text,
    many_tensors,
    weight_bytes,
    weights_cut,
    index,
    other_kind,
    leftover,
)
