"""Matrices stacked in parameters of any module, and the routers beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import compress
from benchmarks.zoo.models import write_model
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton
from compress.models.stacked import find_stacks


def skeleton_of(kind: str, folder: Path) -> Skeleton:
    write_model(kind, folder)
    return open_skeleton(open_source(folder))


@pytest.mark.parametrize(
    ("kind", "leaf", "count", "shape", "transposed"),
    [
        ("llama4_text", "gate_up_proj", 4, (256, 64), True),
        ("llama4_text", "down_proj", 4, (64, 128), True),
        ("jetmoe", "mlp.input_linear.weight", 4, (256, 64), False),
        ("jetmoe", "mlp.output_linear.weight", 4, (64, 128), False),
        ("dbrx", "mlp.w1", 4, (128, 64), False),
        ("dbrx", "mlp.v1", 4, (128, 64), False),
        ("dbrx", "mlp.w2", 4, (64, 128), True),
    ],
)
def test_each_matrix_is_seen_as_it_multiplies(
    kind: str, leaf: str, count: int, shape: tuple[int, int], transposed: bool, tmp_path: Path
) -> None:
    skeleton = skeleton_of(kind, tmp_path)
    views = [v for v in skeleton.views if v.parameter.endswith(leaf) and v.kind == "expert"]
    by_parameter = {name: [v for v in views if v.parameter == name] for name in {v.parameter for v in views}}
    assert by_parameter
    for found in by_parameter.values():
        assert [view.expert for view in found] == list(range(count))
        assert {(view.shape, view.transposed) for view in found} == {(shape, transposed)}


def test_a_view_of_a_flattened_parameter_reads_and_writes_its_rows(tmp_path: Path) -> None:
    skeleton = skeleton_of("dbrx", tmp_path)
    w1 = next(v for v in skeleton.views if v.parameter.endswith("mlp.w1") and v.expert == 2)
    w2 = next(v for v in skeleton.views if v.parameter.endswith("mlp.w2") and v.expert == 2)
    parameter = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(w1.get(parameter), parameter[256:384])
    assert torch.equal(w2.get(parameter), parameter[256:384].T)
    before = parameter.clone()
    w2.put(parameter, torch.zeros(64, 128))
    assert not parameter[256:384].any()
    assert torch.equal(parameter[:256], before[:256])
    assert torch.equal(parameter[384:], before[384:])


def test_a_small_part_of_the_blocks_is_left_alone(tmp_path: Path) -> None:
    """One of twenty parameters: a model that servers open packed stays so."""
    skeleton = skeleton_of("recurrent_gemma", tmp_path)
    assert find_stacks(skeleton.model, skeleton.blocks) == {}


@pytest.mark.parametrize(
    ("kind", "router"),
    [("phimoe", "mlp.router"), ("dbrx", "ffn.router.layer"), ("jetmoe", "mlp.router.layer")],
)
def test_routers_are_compressed_only_by_name(kind: str, router: str, tmp_path: Path) -> None:
    skeleton = skeleton_of(kind, tmp_path)
    modules = [view.module for view in skeleton.views if view.router]
    assert all(name.endswith(("router", "router.layer")) for name in modules)
    assert any(name.endswith(router) for name in modules)
    routers = [view.name for view in skeleton.views if view.router]
    plan = compress.plan(tmp_path, "w4-rtn")
    assert not {weight.name for weight in plan.weights} & set(routers)
    reasons = {one.name: one.reason for one in plan.skipped}
    assert all("router of experts" in reasons[name] for name in routers)
    targeted = compress.plan(tmp_path, "w4-rtn", settings={"targets": ["linear", "experts", routers[0]]})
    assert routers[0] in {weight.name for weight in targeted.weights}
    assert plan.coverage.is_enough


def test_heads_are_no_routers(tmp_path: Path) -> None:
    """The projections of an attention may have as many outputs as there are experts."""
    skeleton = skeleton_of("mixtral", tmp_path)
    assert not any(view.router for view in skeleton.views)


def test_dense_output_of_stacks_is_written_in_place(tmp_path: Path) -> None:
    write_model("dbrx", tmp_path / "source")
    out = tmp_path / "out"
    result = compress.compress(tmp_path / "source", "w4-rtn", out, format="dense", device="cpu")
    assert any(weight.view.flattened for weight in result.plan.weights)
    model = compress.load(out, device="cpu", dtype=torch.float32)
    assert torch.isfinite(model(torch.arange(6).view(1, 6), use_cache=False).logits).all()
    with pytest.raises(UserError, match="stacked|fused|part"):
        compress.plan(tmp_path / "source", "w4-rtn", format="compressed-tensors")
