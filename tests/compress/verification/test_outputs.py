"""Reloaded blocks against the decoded weights: right checkpoints pass, a block that computes something else is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import compress, verify
from compress.checkpoint.source import Source, open_source
from compress.errors import UserError
from compress.models.skeleton import Skeleton
from compress.recipe.recipe import Recipe
from compress.verification import outputs as check

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "packed": ("llama", {}),
    "experts": ("mixtral", {}),
    "fused experts in a dense copy": ("gpt_oss", {"format": "dense"}),
    "dense": ("gpt2", {"format": "dense"}),
    "transposed": ("gpt2", {}),
}


@pytest.fixture
def written(
    tmp_path: Path, tiny_model: Callable[..., Path], request: pytest.FixtureRequest
) -> tuple[Path, Source]:
    family, options = CASES[request.param]
    settings = {"quantize.group_size": 32}
    compress(tiny_model(family), "w4-rtn", tmp_path / "out", settings=settings, device="cpu", **options)
    return tmp_path / "out", open_source(tiny_model(family))


@pytest.mark.parametrize("written", CASES, indirect=True)
def test_a_right_checkpoint_passes_in_every_dtype(written: tuple[Path, Source]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert check.difference(*written, dtype) is None


@pytest.mark.parametrize("written", ["packed", "experts"], indirect=True)
@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_a_weight_that_is_decoded_otherwise_is_found(
    written: tuple[Path, Source], factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = check.decoder

    def other(*args: Any) -> Any:
        decode = real(*args)
        return lambda name: decode(name) * factor if name.startswith("model.layers.1.") else decode(name)

    monkeypatch.setattr(check, "decoder", other)
    # The weights by themselves are compared first, and not here.
    monkeypatch.setattr(check.Distances, "check", lambda *_: None)
    found = check.difference(*written, torch.float32)
    assert found is not None
    assert found.startswith("model.layers.1 ")
    with pytest.raises(
        UserError, match=r"model\.layers\.1 \(relative error (nan|0\.\d+)\) computes something else"
    ):
        check.check_logits(*written)


@pytest.mark.parametrize("written", ["packed"], indirect=True)
def test_two_blocks_are_in_memory_and_none_afterwards(
    written: tuple[Path, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    skeletons: list[Skeleton] = []
    walk = check.walk_blocks
    relative = check._relative

    def noted(skeleton: Skeleton, *args: Any, **options: Any) -> Any:
        skeletons.append(skeleton)
        return walk(skeleton, *args, **options)

    def in_memory(skeleton: Skeleton) -> list[int]:
        modules = [skeleton.block_module(index) for index in range(len(skeleton.blocks))]
        return [
            i for i, m in enumerate(modules) if any(not t.is_meta for t in (*m.parameters(), *m.buffers()))
        ]

    def looked(ours: torch.Tensor, theirs: torch.Tensor) -> float:
        counts.append([in_memory(skeleton) for skeleton in skeletons])
        return relative(ours, theirs)

    counts: list[list[list[int]]] = []
    monkeypatch.setattr(check, "walk_blocks", noted)
    monkeypatch.setattr(check, "_relative", looked)
    assert check.difference(*written, torch.float32) is None
    assert counts == [[[0], [0]], [[1], [1]]]
    assert [in_memory(skeleton) for skeleton in skeletons] == [[], []]


def test_fp32_decides_where_half_precision_differs(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, source = tmp_path / "out", open_source(tiny_model("llama"))
    compress(tiny_model("llama"), "w8", out)
    seen: list[torch.dtype] = []

    def tied(folder: Path, source: object, dtype: torch.dtype) -> str | None:
        seen.append(dtype)
        return None if dtype == torch.float32 else "block 0 (relative error 0.1)"

    monkeypatch.setattr(check, "difference", tied)
    check.check_logits(out, source)
    assert seen == [torch.bfloat16, torch.float32]
    monkeypatch.setattr(check, "difference", lambda *_: "block 0 (relative error 0.1)")
    with pytest.raises(UserError, match="block 0"):
        check.check_logits(out, source)


def _rounded(model: Path, out: Path, bits: int) -> tuple[Path, Source]:
    step = {"quantize": {"bits": 4, "group_size": 32}, "activations": {"bits": bits}}
    cache = {"type": "int", "strategy": "attn_head"}
    compress(
        model,
        Recipe.parse({"name": "x", "steps": [step], "kv_cache": cache}),
        out,
        samples=2,
        length=16,
        device="cpu",
    )
    return out, open_source(model)


@pytest.mark.parametrize("bits", [2, 8])
def test_rounded_inputs_pass_though_sums_move_some_across_an_edge(
    bits: int, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    written = _rounded(tiny_model("llama", num_hidden_layers=6), tmp_path / "out", bits)
    assert check.difference(*written, torch.float32) is None


@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_that_are_not_rounded_are_found(
    bits: int, tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = _rounded(tiny_model("llama"), tmp_path / "out", bits)
    real = check.simulation_of

    def one_block_less(*args: Any) -> Any:
        simulation = real(*args)
        simulation._modules[1].clear()
        return simulation

    monkeypatch.setattr(check, "simulation_of", one_block_less)
    found = check.difference(*written, torch.float32)
    assert found is not None
    assert found.startswith("model.layers.1 ")


def test_weights_that_were_fitted_anew_and_no_step_takes_are_those_that_were_written(
    tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    """The source knows no values of them; the attention output reads fewer heads, and only the FFN is rounded."""
    steps = [
        {"targets": ["gate_proj", "up_proj"], "quantize": {"bits": 4, "group_size": 32}, "solver": "nearest"}
    ]
    calibrate = {"samples": 2, "length": 16}
    recipe = Recipe.parse(
        {"name": "test", "calibrate": calibrate, "width_pruning": {"groups": 0.5}, "steps": steps}
    )
    out = tmp_path / "out"
    compress(tiny_model("llama"), recipe, out, device="cpu")
    verify(out, tiny_model("llama"))
