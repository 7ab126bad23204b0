"""Building on meta: finding the blocks, and computing the buffers that no file holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.build import build_on_meta, compute_buffers
from compress.models.towers import find_blocks


def linears(count: int, size: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(size, size) for _ in range(count))


def test_blocks_are_the_list_with_most_parameters() -> None:
    block = nn.Module()
    block.experts = linears(8, 8)
    decoder = nn.Module()
    decoder.layers = nn.ModuleList([block, nn.Linear(4, 4)])
    model = nn.Module()
    model.small = linears(5, 4)
    model.decoder = decoder
    assert find_blocks(model) == ["decoder.layers.0", "decoder.layers.1"]


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.ModuleDict({"layers": nn.ModuleList()})])
def test_no_blocks(model: nn.Module) -> None:
    with pytest.raises(UserError, match="no list of decoder blocks"):
        find_blocks(model)


def test_buffers_that_nobody_computes_are_refused(tiny_model: Callable[..., Path]) -> None:
    model = build_on_meta(open_source(tiny_model("llama")))
    with torch.device("meta"):
        model.model.norm.register_buffer("mystery", torch.zeros(3), persistent=False)
    meta = dict(model.named_buffers())
    options = {"device": torch.device("cpu"), "dtype": torch.float32}
    compute_buffers(model, ["model.rotary_emb"], meta, **options)
    assert model.model.rotary_emb.inv_freq[0] == 1
    with pytest.raises(UserError, match=r"model\.norm\.mystery"):
        compute_buffers(model, ["model.norm"], meta, **options)


def test_building_takes_no_memory(tiny_model: Callable[..., Path]) -> None:
    model = build_on_meta(open_source(tiny_model("llama_tied")))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert all(buffer.is_meta for buffer in model.buffers())
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert not model.training


def test_changed_settings_act_as_if_the_file_held_them(tiny_model: Callable[..., Path]) -> None:
    source = open_source(tiny_model("gemma3", num_hidden_layers=2))
    changes = {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    changed = replace(source, config={**source.config, **changes}, changes=changes)
    model = build_on_meta(changed)
    assert len(model.model.layers) == 1
    assert model.config.layer_types == ["full_attention"]
    assert build_on_meta(source).config.num_hidden_layers == 2


def test_settings_that_contradict_each_other_are_refused(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model("gemma3"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"config\.json: `num_hidden_layers` \(3\) must be equal") as caught:
        build_on_meta(open_source(folder))
    assert "\n" not in str(caught.value)
