from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compress import load
from compress.evaluation import evaluate


@pytest.mark.parametrize("family", ["llama_tied", "gemma3", "phi3", "gpt2", "opt", "qwen3_moe", "gpt_oss"])
def test_a_family_is_measured_through_the_package_s_own_loader(
    tiny_model: Callable[..., Path], text: Path, family: str
) -> None:
    folder = tiny_model(family)
    result = evaluate(folder, [folder], text=text, load=load, length=32, limit=2, dtype="fp32", device="cpu")
    (row,) = result.candidates
    assert (row.kl, row.top1) == (0.0, 1.0)
    assert row.bits_per_weight == 16
    assert row.decode_tokens_per_second is not None
