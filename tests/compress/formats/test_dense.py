"""Where a weight lies in the source's tensors: fused, stacked, interleaved and transposed ones too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.zoo.models import write_model
from compress import compress, load
from compress.checkpoint.source import open_source
from compress.formats.dense import region
from compress.models.skeleton import open_skeleton
from compress.planning.make import make_plan
from compress.recipe.recipe import Recipe


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox", "mixtral", "qwen3_moe", "gpt_oss"])
def test_the_region_on_disk_is_the_weight(family: str, tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model(family)))
    recipe = Recipe.parse({"name": "x", "steps": [{"quantize": {"bits": 8, "group_size": "channel"}}]})
    facts = make_plan(skeleton, recipe, format="dense").facts
    tensors = load_file(tiny_model(family) / "model.safetensors")
    skeleton.load_block(0, device="cpu", dtype=skeleton.dtype)
    views = [view for view in skeleton.block_views(0) if view.sources]
    assert views
    for view in views:
        expected = view.get(skeleton.parameter_of(view).detach())
        found = region(view, tensors[view.sources[0]], facts)
        assert torch.equal(found, expected), view.name
        found.fill_(7.0)  # a view, so that what is written there lands in the tensor
        assert bool((region(view, tensors[view.sources[0]], facts) == 7.0).all())


def test_rows_that_alternate_on_disk_and_names_that_end_otherwise(tmp_path: Path) -> None:
    write_model("inkling2_text", tmp_path / "source")
    for format in ("dense", "native"):
        compress(tmp_path / "source", "w4-rtn", tmp_path / format, format=format, device="cpu")
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        dense, packed = (
            load(tmp_path / format, device="cpu")(input_ids=tokens).logits for format in ("dense", "native")
        )
        original = load(tmp_path / "source", device="cpu")(input_ids=tokens).logits
    torch.testing.assert_close(dense, packed, rtol=1e-4, atol=1e-4)
    assert float((dense - original).norm() / original.norm()) > 1e-3
