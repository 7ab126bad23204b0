"""Types of our mixes beside llama.cpp's: fallbacks by width, and the table."""

from __future__ import annotations

from pathlib import Path

from benchmarks.servers.gguf_types import differing, planned_types, types_table, write


def test_weights_that_a_k_quant_does_not_fit_take_llama_cpps_type(tmp_path: Path) -> None:
    types = planned_types(write(tmp_path / "model", tied=True), "q2_k")
    assert types["blk.0.attn_q.weight"] == "q4_0"  # 288 inputs
    assert types["blk.0.ffn_down.weight"] == "q3_k"  # 768
    assert types["token_embd.weight"] == "q8_0"
    types = planned_types(tmp_path / "model", "q4_k_m")
    assert types["blk.1.attn_q.weight"] == "q5_0"


def test_the_table_counts_tensors() -> None:
    different = differing({"a": "q4_0", "b": "q6_k"}, {"a": "q4_0", "b": "q8_0", "c": "f32"})
    assert different == {"b": ["q8_0", "q6_k"]}
    row = {"recipe": "q2_k", "tensors": 5, "different": different, "tied": True}
    assert "4 of 5" in types_table([row])
