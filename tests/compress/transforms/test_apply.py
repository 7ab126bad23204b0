"""Transforms on a real block: its function stays, its weights change, and only those that are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from compress.calibrate.capture import call_block
from compress.calibrate.stream import BlockStream
from compress.checkpoint.source import open_source
from compress.models.skeleton import open_skeleton
from compress.structures.grids.integer import IntegerGrid
from compress.transforms.apply import transform_block
from compress.transforms.base import Reader

TOKENS = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Doubling:
    """Scales every other input by two."""

    needs: ClassVar[frozenset[str]] = frozenset({"mean_abs"})

    def scales(self, reader: Reader) -> Tensor:
        assert reader.statistics.mean_abs is not None
        assert all(weight.shape[1] == len(reader.statistics.mean_abs) for weight in reader.weights)
        return torch.exp2(torch.arange(len(reader.statistics.mean_abs)) % 2.0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_block_computes_the_same_with_other_weights(tiny_model: Callable[..., Path], family: str) -> None:
    skeleton = open_skeleton(open_source(tiny_model(family)))
    with BlockStream(skeleton, TOKENS, dtype=torch.float32) as stream:
        stream.prepare()
        skeleton.load_block(0, device="cpu", dtype=torch.float32)
        block, prefix = skeleton.block_module(0), skeleton.blocks[0]
        hidden, kwargs = next(iter(stream.inputs(0)))
        parameters = {f"{prefix}.{name}": value for name, value in block.named_parameters()}
        views = skeleton.block_views(0)
        left_out = views[-1].name
        structures = {view.name: IntegerGrid(4, "channel") for view in views if view.name != left_out}
        weights = {view.name: view.get(parameters[view.parameter].detach()).clone() for view in views}
        editable = frozenset(name for name, value in parameters.items() if value.ndim == 1)
        with torch.no_grad():
            before = call_block(block, hidden.clone(), kwargs)
            done = transform_block(skeleton, stream, 0, structures, (Doubling(),), editable)
            after = call_block(block, hidden.clone(), kwargs)
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
        assert set(done.states) == set(structures)
        assert "scaled" in done.states.values()
        for view in views:
            same = torch.equal(view.get(parameters[view.parameter].detach()), weights[view.name])
            if done.states.get(view.name) == "scaled":
                assert not same, view.name
            if view.kind == "expert" and view.name != left_out:
                assert done.states[view.name] == "unscaled: an expert"
