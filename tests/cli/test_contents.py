"""What `compress inspect` counts: kinds, forms and bytes of a checkpoint, from its headers alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compress_cli.contents import Stored, contents, totals
from safetensors.torch import load_file, save_file

from compress.api import compress
from compress.checkpoint.source import open_source

Tiny = Callable[..., Path]


@pytest.fixture(scope="module")
def packed(tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    compress(tiny_model("llama"), "w4-rtn", out, settings={"quantize.group_size": 32}, device="cpu")
    return out


def by_name(folder: Path) -> dict[str, Stored]:
    return {stored.name: stored for stored in contents(open_source(folder))}


def test_a_dense_checkpoint(tiny_model: Tiny) -> None:
    found = by_name(tiny_model("llama"))
    down = found["model.layers.0.mlp.down_proj.weight"]
    assert (down.kind, down.form, down.shape, down.nbytes) == ("linear", "bf16", (64, 128), 2 * 64 * 128)
    assert found["model.embed_tokens.weight"].kind == "embedding"
    assert found["lm_head.weight"].kind == "head"
    assert found["model.norm.weight"].kind == "vector"
    assert {stored.kind for stored in found.values()} == {"linear", "embedding", "head", "vector"}


def test_experts_and_routers(tiny_model: Tiny) -> None:
    found = by_name(tiny_model("mixtral"))
    experts = [stored for stored in found.values() if stored.kind == "expert"]
    assert len(experts) > 0
    assert sum(stored.parameters for stored in experts) == 2 * 4 * 3 * 64 * 128


def test_transposed_linears_have_a_kind_of_their_own(tiny_model: Tiny) -> None:
    assert {stored.kind for stored in by_name(tiny_model("gpt2")).values()} >= {"conv1d", "embedding"}


def test_a_packed_weight_is_one_entry_of_its_own_shape(packed: Path) -> None:
    found = by_name(packed)
    down = found["model.layers.0.mlp.down_proj"]
    assert (down.kind, down.form, down.shape) == ("linear", "int4 group 32", (64, 128))
    headers = open_source(packed).headers
    own = [info.nbytes for name, info in headers.items() if name.startswith("model.layers.0.mlp.down_proj.")]
    assert len(own) == 3
    assert down.nbytes == sum(own)


def test_no_byte_is_lost_or_counted_twice(packed: Path, tiny_model: Tiny) -> None:
    for folder in (packed, tiny_model("llama"), tiny_model("gpt_oss")):
        source = open_source(folder)
        assert sum(s.nbytes for s in contents(source)) == sum(info.nbytes for info in source.headers.values())


def test_a_model_that_nobody_knows_is_listed_tensor_by_tensor(tiny_model: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "strange"
    shutil.copytree(tiny_model("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    found = by_name(folder)
    assert {stored.kind for stored in found.values()} == {"other", "vector"}
    assert len(found) == len(open_source(folder).headers)


def test_a_packing_that_nobody_knows_is_listed_tensor_by_tensor(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "strange"
    shutil.copytree(packed, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "unheard-of"
    (folder / "config.json").write_text(json.dumps(config))
    assert "model.layers.0.mlp.down_proj.weight_packed" in by_name(folder)


def test_dtypes_by_their_short_names(tiny_model: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(tiny_model("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    tensors["counts"] = torch.zeros(3, dtype=torch.int16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found = by_name(folder)
    assert found["model.norm.weight"].form == "fp32"
    assert found["counts"].form == "int16"


def test_totals_by_kind_and_form_with_the_largest_first() -> None:
    stored = [
        Stored("a", "linear", "bf16", (2, 3), 12),
        Stored("b", "linear", "bf16", (4, 3), 24),
        Stored("c", "linear", "int4 group 32", (8, 8), 99),
        Stored("d", "vector", "bf16", (5,), 10),
    ]
    found = [(t.kind, t.form, t.count, t.parameters, t.nbytes) for t in totals(stored)]
    assert found == [
        ("linear", "int4 group 32", 1, 64, 99),
        ("linear", "bf16", 2, 18, 36),
        ("vector", "bf16", 1, 5, 10),
    ]
    assert totals([]) == []
