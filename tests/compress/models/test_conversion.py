"""Conversions followed on shapes alone, against transformers running them on tensors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    ConversionOps,
    Interleave,
    MergeModulelist,
    Transpose,
    WeightConverter,
)

from compress.checkpoint.source import open_source
from compress.models.conversion import Misfit, NotUnderstood, Symbol, follow
from compress.models.skeleton import open_skeleton

GATES, UPS = ["e.*.gate", "e.*.up"], [(6, 4)] * 3
CASES: dict[str, tuple[list[str], list[str], list[ConversionOps], dict[str, list[tuple[int, ...]]]]] = {
    "stack": (["e.*.down"], ["down"], [MergeModulelist(0)], {"e.*.down": [(4, 6)] * 3}),
    "stack and join": (GATES, ["gate_up"], [MergeModulelist(0), Concatenate(1)], dict.fromkeys(GATES, UPS)),
    "stack, join and transpose": (
        GATES,
        ["gate_up"],
        [MergeModulelist(0), Concatenate(1), Transpose(1, 2)],
        dict.fromkeys(GATES, UPS),
    ),
    "join": (["q", "k"], ["qk"], [Concatenate(0)], {"q": [(6, 4)], "k": [(2, 4)]}),
    "join columns": (["q", "k"], ["qk"], [Concatenate(-1)], {"q": [(4, 6)], "k": [(4, 2)]}),
    "transpose": (["w"], ["v"], [Transpose(0, 1)], {"w": [(6, 4)]}),
    "chunk": (["qkv"], ["q", "k", "v"], [Chunk(0)], {"qkv": [(6, 4)]}),
    "chunk columns": (["qkv"], ["q", "k"], [Chunk(1)], {"qkv": [(6, 4)]}),
    "interleave rows": (["w"], ["v"], [Interleave(0)], {"w": [(6, 4)]}),
    "interleave experts": (["gate_up"], ["fused"], [Interleave(1)], {"gate_up": [(3, 6, 4)]}),
    "interleave and chunk": (["qk"], ["q", "k"], [Interleave(0), Chunk(0)], {"qk": [(8, 4)]}),
    "interleave and chunk across": (["q3"], ["a", "b", "c"], [Interleave(0), Chunk(0)], {"q3": [(12, 4)]}),
    "interleave and transpose": (["w"], ["v"], [Interleave(1), Transpose(0, 1)], {"w": [(6, 4)]}),
    "transpose and chunk": (["gate_up"], ["gate_up_t"], [Transpose(1, 2)], {"gate_up": [(3, 6, 4)]}),
}


@pytest.mark.parametrize("case", CASES)
def test_pieces_put_together_are_what_transformers_makes(case: str) -> None:
    sources, targets, operations, shapes = CASES[case]
    torch.manual_seed(0)
    disk = {f"{key}{i}": torch.randn(shape) for key, many in shapes.items() for i, shape in enumerate(many)}
    inputs = {key: [Symbol.of(f"{key}{i}", s) for i, s in enumerate(many)] for key, many in shapes.items()}
    symbols = follow(operations, inputs, sources, targets)

    converter = WeightConverter(list(sources), list(targets), operations)
    for key, many in shapes.items():
        for index in range(len(many)):
            converter.add_tensor(targets[0], f"{key}{index}", key, disk[f"{key}{index}"])
    expected = converter.convert(targets[0])

    assert symbols.keys() == expected.keys()
    for target, symbol in symbols.items():
        made = torch.full(symbol.shape, float("nan"))
        for piece in symbol.pieces:
            piece.place(made).copy_(piece.of_disk(disk[piece.disk]))
            assert piece.whole == (case.split()[0] not in ("chunk", "interleave"))
        assert torch.equal(made, expected[target])


class Upside(ConversionOps):
    """An operation that nobody has heard of: turns a tensor upside down."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        return {target_patterns[0]: input_dict[source_patterns[0]][0].flip(0)}


def test_operations_that_are_not_followed() -> None:
    with pytest.raises(NotUnderstood):
        follow([Upside()], {"w": [Symbol.of("w", (4, 4))]}, ["w"], ["w"])


@pytest.mark.parametrize("operations", [[MergeModulelist(0)], [Concatenate(0)]])
def test_tensors_that_do_not_fit_together(operations: list[ConversionOps]) -> None:
    with pytest.raises(Misfit):
        follow(operations, {"w": [Symbol.of("a", (4, 4)), Symbol.of("b", (4, 3))]}, ["w"], ["v"])


def use(monkeypatch: pytest.MonkeyPatch, *converters: WeightConverter) -> None:
    monkeypatch.setattr(
        "compress.models.disk_map.get_model_conversion_mapping", lambda model: list(converters)
    )


def test_other_conversions_are_run_and_listed(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, WeightConverter("mlp.up_proj.weight", "mlp.up_proj.weight", [Upside()]))
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    name = "model.layers.1.mlp.up_proj.weight"
    assert "Upside" in skeleton.unsupported[name]
    assert all(view.parameter != name for view in skeleton.views)
    skeleton.load_block(1, device="cpu", dtype=torch.float32)
    expected = skeleton.source.read(name).float().flip(0)
    assert torch.equal(skeleton.model.get_parameter(name), expected)


def test_a_tensor_fused_on_disk_has_several_views(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that holds gate and up in one tensor, of a model that has them apart."""
    folder = tmp_path / "fused"
    shutil.copytree(tiny_model("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    for block in range(2):
        gate, up = (tensors.pop(f"model.layers.{block}.mlp.{part}_proj.weight") for part in ("gate", "up"))
        tensors[f"model.layers.{block}.mlp.both.weight"] = torch.cat([gate, up])
    save_file(tensors, folder / "model.safetensors")
    parts = ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
    use(monkeypatch, WeightConverter("mlp.both.weight", parts, [Chunk(0)]))
    skeleton = open_skeleton(open_source(folder))
    fused = [view for view in skeleton.block_views(0) if view.sources == ("model.layers.0.mlp.both.weight",)]
    assert [view.name for view in fused] == ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]
    skeleton.load_block(0, device="cpu", dtype=torch.bfloat16)
    found = torch.cat([view.get(skeleton.parameter_of(view)) for view in fused])
    assert torch.equal(found, tensors["model.layers.0.mlp.both.weight"])


def test_a_linear_split_on_disk_has_a_view_for_each_part(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that holds gate and up apart, of a model that fuses them."""
    folder = tmp_path / "split"
    shutil.copytree(tiny_model("phi3"), folder)
    tensors = load_file(folder / "model.safetensors")
    for block in range(2):
        gate, up = tensors.pop(f"model.layers.{block}.mlp.gate_up_proj.weight").split([128, 128])
        tensors[f"model.layers.{block}.mlp.gate.weight"] = gate.clone()
        tensors[f"model.layers.{block}.mlp.up.weight"] = up.clone()
    save_file(tensors, folder / "model.safetensors")
    parts = ["mlp.gate.weight", "mlp.up.weight"]
    use(monkeypatch, WeightConverter(parts, "mlp.gate_up_proj.weight", [Concatenate(0)]))
    skeleton = open_skeleton(open_source(folder))
    skeleton.load_block(1, device="cpu", dtype=torch.bfloat16)
    views = {view.name: view for view in skeleton.block_views(1)}
    for part in ("gate", "up"):
        view = views[f"model.layers.1.mlp.{part}"]
        assert view.shape == (128, 64)
        assert torch.equal(view.get(skeleton.parameter_of(view)), tensors[f"{view.name}.weight"])
