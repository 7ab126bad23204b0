"""Checks of values, where sizes, headers and hashes are as written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compress_kernels.layouts import PackedInteger, PlainInteger, TensorSpec
from safetensors.torch import save
from torch import Tensor

from compress.checkpoint.shards import lay_out
from compress.errors import UserError
from compress.verification.files import check_shard, check_values

GOOD = {
    "a.weight": torch.tensor([[-8, 7], [0, 3]], dtype=torch.int8),
    "a.weight_scale": torch.ones(2, 1, dtype=torch.bfloat16),
}


def outputs(folder: Path, tensors: dict[str, Tensor], layout: Any) -> Any:
    """A plan of one weight ``a`` whose shard is written with ``tensors``."""
    specs = [(name, TensorSpec(tuple(tensor.shape), tensor.dtype)) for name, tensor in tensors.items()]
    shards = lay_out(specs, 1 << 20)
    for shard in shards:
        data = bytearray(shard.header) + bytearray(shard.nbytes - len(shard.header))
        for slot in shard.slots:
            raw = save({"x": tensors[slot.name]})
            data[slot.offset : slot.offset + slot.nbytes] = raw[len(raw) - slot.nbytes :]
        (folder / shard.filename).write_bytes(data)
    weight = SimpleNamespace(
        name="a", layout=layout, tensors=dict(specs), view=SimpleNamespace(shape=(2, 2))
    )  # fmt: skip
    return SimpleNamespace(
        shards=shards,
        weights=(weight,),
        rewritten={},
        passed_through=(),
        converted={},
        facts=SimpleNamespace(kv_cache=None),
    )


SOURCE: Any = SimpleNamespace(unread=frozenset())


def test_plain_codes_in_range_pass(tmp_path: Path) -> None:
    check_values(tmp_path, outputs(tmp_path, GOOD, PlainInteger(4)), SOURCE)


@pytest.mark.parametrize("code", [8, -9, 127, -128])
def test_a_plain_code_out_of_its_bits_is_found(tmp_path: Path, code: int) -> None:
    codes = GOOD["a.weight"].clone()
    codes[1, 0] = code
    plan = outputs(tmp_path, {**GOOD, "a.weight": codes}, PlainInteger(4))
    with pytest.raises(UserError, match=r"a\.weight holds codes outside of 4 bits"):
        check_values(tmp_path, plan, SOURCE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_scale_that_is_not_finite_is_found(tmp_path: Path, value: float) -> None:
    scale = GOOD["a.weight_scale"].clone()
    scale[1] = value
    with pytest.raises(UserError, match=r"a\.weight_scale holds NaN or infinite"):
        check_values(tmp_path, outputs(tmp_path, {**GOOD, "a.weight_scale": scale}, PlainInteger(4)), SOURCE)


def test_a_recorded_shape_is_the_weights(tmp_path: Path) -> None:
    tensors = {
        "a.weight_packed": torch.zeros(2, 1, dtype=torch.int32),
        "a.weight_scale": torch.ones(2, 1, dtype=torch.bfloat16),
        "a.weight_shape": torch.tensor([2, 2]),
    }
    layout = PackedInteger(4, "channel")
    check_values(tmp_path, outputs(tmp_path, tensors, layout), SOURCE)
    with pytest.raises(UserError, match=r"a\.weight_shape is \[2, 3\], but the weight is \[2, 2\]"):
        check_values(
            tmp_path, outputs(tmp_path, {**tensors, "a.weight_shape": torch.tensor([2, 3])}, layout), SOURCE
        )


def test_a_tensor_without_a_hash_is_found(tmp_path: Path) -> None:
    plan = outputs(tmp_path, GOOD, PlainInteger(4))
    with pytest.raises(UserError, match="has no hash of tensor"):
        check_shard(tmp_path, plan.shards[0], plan, SOURCE, {}, None)
