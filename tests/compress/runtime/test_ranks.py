"""Cutting ranks of a loaded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compress_kernels.modules import PackedLinear

import compress
from compress.errors import UserError
from compress.runtime.ranks import cut_ranks

TOKENS = torch.arange(3, 19).view(2, 8)
GRID = {"bits": 4, "group_size": 16}


@pytest.mark.parametrize("beside", [{}, {"quantize": GRID}], ids=["alone", "beside a grid"])
def test_the_first_ranks_stay(
    tiny_model: Callable[..., Path], tmp_path: Path, beside: dict[str, object]
) -> None:
    solver = ["nearest", "eora"] if beside else "weighted_svd"
    step = {"targets": ["linear"], "lowrank": {"rank": 8}, "solver": solver, "score": "activation", **beside}
    compress.compress(
        tiny_model("llama"), compress.Recipe.parse({"name": "low", "steps": [step]}), tmp_path / "out"
    )
    model = compress.load(tmp_path / "out", dtype=torch.float32, device="cpu")
    layers = {name: one for name, one in model.named_modules() if isinstance(one, PackedLinear)}
    wanted = {}
    for name, one in layers.items():
        prefix = next(suffix for suffix in one.suffixes if suffix.endswith("left_weight")).removesuffix(
            "left_weight"
        )
        left, right = (one.tensors()[f"{prefix}{side}_weight"].float() for side in ("left", "right"))
        wanted[name] = one.weight.float() - left[:, 4:] @ right[4:]
    assert cut_ranks(model, 0.5) == len(layers) > 0
    for name, weight in wanted.items():
        found = model.get_submodule(name)
        torch.testing.assert_close(found.weight.float(), weight, atol=2e-2, rtol=2e-2)
        assert sum(t.shape[-1] == 4 for t in found.tensors().values()) >= 1
    with torch.no_grad():
        assert bool(model(TOKENS).logits.isfinite().all())


def test_what_has_no_ranks_is_refused(tiny_model: Callable[..., Path]) -> None:
    model = compress.load(tiny_model("llama"), device="cpu")
    with pytest.raises(UserError, match="there are no ranks to cut"):
        cut_ranks(model, 0.5)
    with pytest.raises(UserError, match="above 0 and up to 1, not 0"):
        cut_ranks(model, 0)
