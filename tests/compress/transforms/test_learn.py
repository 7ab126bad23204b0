"""Learned rotations: orthogonal, better than where they started, and a sentence where there is nothing to learn from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compress_kernels.activations import ActivationScheme, fake_quantize
from safetensors.torch import load_file, save_file
from torch import nn

from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton
from compress.transforms.learn import _round_input, learn_rotation, learned_plan, rounded_layers
from compress.transforms.rotate import rotate
from compress.transforms.rotation import Rotation, RotationPlan, plan_rotation

PLAIN = Rotation()
INT4 = ActivationScheme(4)
TOKENS = torch.randint(2, 250, (2, 32), generator=torch.Generator().manual_seed(0))


def _start(folder: Path, settings: Rotation = PLAIN) -> tuple[Skeleton, RotationPlan]:
    skeleton = open_skeleton(open_source(folder))
    plan = plan_rotation(skeleton, settings, 0)
    return open_skeleton(rotate(skeleton, plan)), plan


def _with_outliers(folder: Path, out: Path) -> Path:
    """The model with two loud features in its residual stream, and logits that differ."""
    shutil.copytree(folder, out)
    tensors = load_file(str(out / "model.safetensors"))
    for name, tensor in tensors.items():
        if "embed_tokens" in name or "wte" in name:
            tensor[:, 5:7] *= 40
        if "mlp" in name or "attn" in name:
            tensor *= 3
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_matrix_is_orthogonal_and_keeps_the_mean_where_it_has_to(
    tiny_model: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    skeleton, plan = _start(_with_outliers(tiny_model(family), tmp_path / "loud"), Rotation(block=2))
    assert plan.residual is not None
    space = plan.residual.space
    layers = rounded_layers(
        space, dict.fromkeys((view for view in skeleton.views if view.block is not None), INT4)
    )
    losses: list[float] = []
    matrix = learn_rotation(
        skeleton, space, layers, TOKENS, steps=12, rate=1.5, device="cpu", progress=losses.append
    )
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(64, dtype=torch.float64))
    assert len(losses) == 12
    assert all(loss > 0 for loss in losses)
    ones = torch.ones(64, dtype=torch.float64)
    assert bool(torch.allclose(ones @ matrix, ones)) == space.keeps_mean


def test_layers_that_read_the_stream_are_told_from_others(tiny_model: Callable[..., Path]) -> None:
    skeleton, plan = _start(tiny_model("mixtral"))
    assert plan.residual is not None
    schemes = dict.fromkeys((view for view in skeleton.views if view.block == 0), INT4)
    layers = {
        layer.view.name.rpartition("layers.0.")[2]: layer.rotated
        for layer in rounded_layers(plan.residual.space, schemes)
    }
    assert layers["self_attn.q_proj"]
    assert not layers["self_attn.o_proj"]
    assert not any("experts.0" in name for name in layers)


def test_roundings_pass_gradients_straight_through() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    matrix = torch.linalg.qr(torch.randn(8, 8)).Q
    (found,) = _round_input(INT4, matrix, nn.Linear(8, 8), (x,))
    torch.testing.assert_close(found, fake_quantize(x.detach() @ matrix, INT4) @ matrix.T)
    (gradient,) = torch.autograd.grad(found.sum(), [x])
    torch.testing.assert_close(gradient, torch.ones(3, 8), rtol=1e-4, atol=1e-5)


def test_a_matrix_that_was_kept_is_taken_over(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    skeleton, plan = _start(tiny_model("llama"))
    schemes = dict.fromkeys((view for view in skeleton.views if view.block is not None), INT4)
    settings = Rotation(residual="learned", steps=2)
    learned = [
        learned_plan(skeleton, plan, settings, schemes, tokens, device="cpu", folder=tmp_path)
        for tokens in (TOKENS, TOKENS.flip(0))
    ]
    assert learned[0].learned == learned[1].learned
    assert learned[0].learned is not None
    assert learned[0].residual is not None
    assert learned[0].residual.matrix.label == "Hadamard 64, then learned"


def test_nothing_rounded_nothing_learned(tiny_model: Callable[..., Path]) -> None:
    skeleton, plan = _start(tiny_model("llama"))
    assert plan.residual is not None
    with pytest.raises(UserError, match="'residual: learned' is for steps that round 'activations'"):
        learn_rotation(skeleton, plan.residual.space, [], TOKENS, steps=1, rate=1.0, device="cpu")
