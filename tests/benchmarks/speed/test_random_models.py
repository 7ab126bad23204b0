"""Random checkpoints have the shapes that were asked for, grouped keys and a head of its own among them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.promised_memory import needed_bytes
from benchmarks.speed.random_models import Shape, write_model
from compress.checkpoint.source import open_source

SHAPE = Shape(hidden=64, ffn=96, heads=4, blocks=2, vocabulary=128, kv_heads=2, tied=False)


def test_grouped_keys_and_a_head(tmp_path: Path) -> None:
    written = write_model(tmp_path / "model", SHAPE, tmp_path)
    source = open_source(tmp_path / "model")
    assert source.headers["model.layers.1.self_attn.k_proj.weight"].shape == (32, 64)
    assert source.headers["lm_head.weight"].shape == (128, 64)
    assert source.config["num_key_value_heads"] == 2
    linears = sum(i.nbytes for n, i in source.headers.items() if ".0." in n and "norm" not in n)
    assert SHAPE.block_bytes == linears
    assert written < needed_bytes(SHAPE) < 2 * written
