"""Packed modules in the places of dense ones: which weights can run packed, and what becomes of the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compress_kernels.layouts import PackedInteger
from compress_kernels.modules import DenseLinear, PackedLinear
from torch import nn
from transformers import AutoModelForCausalLM

from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.formats.packed_weight import PackedWeight
from compress.models.skeleton import Skeleton, open_skeleton
from compress.runtime.experts import PackedExperts
from compress.runtime.swap import prepare, swap, swap_dense, tell_decoded

Tiny = Callable[..., Path]


def skeleton_of(path: Path) -> Skeleton:
    return open_skeleton(open_source(path))


def packed_of(skeleton: Skeleton, names: str = "") -> dict[str, PackedWeight]:
    """A packed weight for every view of the blocks whose name holds ``names``."""
    layout = PackedInteger(4, 32)
    views = [view for view in skeleton.views if view.block is not None and names in view.name]
    return {
        view.name: PackedWeight(layout, view.shape, {s: f"{view.name}.{s}" for s in layout.specs(view.shape)})
        for view in views
    }


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_linears_are_replaced(tiny_model: Tiny, family: str) -> None:
    skeleton = skeleton_of(tiny_model(family))
    packed = packed_of(skeleton)
    places = swap(skeleton.model, skeleton.views, packed)
    assert places.keys() == packed.keys()
    for name, place in places.items():
        module = skeleton.model.get_submodule(place)
        assert isinstance(module, PackedLinear)
        assert module.shape == packed[name].shape


def test_a_bias_stays(tiny_model: Tiny) -> None:
    skeleton = skeleton_of(tiny_model("opt"))
    swap(skeleton.model, skeleton.views, packed_of(skeleton))
    packed = [module for module in skeleton.model.modules() if isinstance(module, PackedLinear)]
    assert packed
    assert all(module.bias is not None for module in packed)


def test_experts_are_replaced_together(tiny_model: Tiny) -> None:
    skeleton = skeleton_of(tiny_model("mixtral"))
    packed = packed_of(skeleton, "experts")
    places = swap(skeleton.model, skeleton.views, packed)
    assert places.keys() == packed.keys()
    assert sum(isinstance(module, PackedExperts) for module in skeleton.model.modules()) == 2


def test_experts_of_which_one_is_dense_stay_dense(tiny_model: Tiny) -> None:
    skeleton = skeleton_of(tiny_model("mixtral"))
    packed = packed_of(skeleton, "layers.0.")
    missing = next(name for name in packed if "experts" in name)
    del packed[missing]
    places = swap(skeleton.model, skeleton.views, packed)
    assert not any("experts" in name for name in places)
    assert any("self_attn" in name for name in places)


def test_a_weight_of_another_shape_is_left(tiny_model: Tiny) -> None:
    skeleton = skeleton_of(tiny_model("llama"))
    packed = packed_of(skeleton, "layers.0.mlp.up_proj")
    (name,) = packed
    packed[name] = PackedWeight(packed[name].layout, (1, 32), packed[name].names)
    assert swap(skeleton.model, skeleton.views, packed) == {}


def test_a_linear_with_a_forward_of_its_own_is_left(tiny_model: Tiny) -> None:
    skeleton = skeleton_of(tiny_model("llama"))
    packed = packed_of(skeleton, "layers.0.mlp.up_proj")
    module = skeleton.model.get_submodule("model.layers.0.mlp.up_proj")

    class Scaled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    module.__class__ = Scaled
    assert swap(skeleton.model, skeleton.views, packed) == {}


def test_dense_linears_decode_fast_and_compute_the_same(tiny_model: Tiny) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama_tied"))
    tokens = torch.arange(6).unsqueeze(0)
    with torch.no_grad():
        before = model(tokens).logits
        swap_dense(model)
        after = model(tokens).logits
    assert isinstance(model.lm_head, DenseLinear)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert float((after - before).norm() / before.norm()) < 1e-2


def test_a_damaged_weight_is_named(tiny_model: Tiny) -> None:
    layout = PackedInteger(4, 32)
    tensors = layout.encode(torch.randint(0, 16, (8, 64)), torch.rand(8, 2))
    tensors["weight_shape"] = torch.tensor([9, 64])
    model = nn.Sequential(nn.Identity(), PackedLinear(layout, (8, 64), tensors))
    with pytest.raises(UserError, match="here: the packed weight 1 is damaged: weight_shape says"):
        prepare(model, "here")


def test_modules_without_values_wait(tiny_model: Tiny) -> None:
    prepare(nn.Sequential(PackedLinear(PackedInteger(4, 32), (8, 64), device="meta")), "here")


def test_decoded_weights_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="compress"):
        tell_decoded([], 0)
        assert caplog.text == ""
        tell_decoded(["a", "b", "c"], 2_000_000)
    assert "a and 2 more cannot run packed and is decoded: 2.00 MB" in caplog.text
