"""Units of a block's width: their numbers, the settings that change, and the tensors that run over them, for many models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.build import build_on_meta
from compress.models.skeleton import Skeleton, open_skeleton
from compress.prune.units import Part, changed, groups, neurons


def skeleton_of(folder: Path) -> Skeleton:
    return open_skeleton(open_source(folder))


def suffixes(part: Part, block: str) -> dict[str, tuple[int, ...]]:
    """The cut parameters of one block by their names within it."""
    return {n.removeprefix(f"{block}."): d for n, d in part.dims.items() if n.startswith(f"{block}.")}


NEURONS: dict[str, tuple[dict[str, int], dict[str, tuple[int, ...]], str]] = {
    "llama": (
        {"intermediate_size": 64},
        {"mlp.gate_proj.weight": (0,), "mlp.up_proj.weight": (0,), "mlp.down_proj.weight": (1,)},
        "mlp.down_proj",
    ),
    "gpt2": (
        {"n_inner": 128},
        {"mlp.c_fc.weight": (1,), "mlp.c_fc.bias": (0,), "mlp.c_proj.weight": (0,)},
        "mlp.c_proj",
    ),
    "opt": ({"ffn_dim": 64}, {"fc1.weight": (0,), "fc1.bias": (0,), "fc2.weight": (1,)}, "fc2"),
    "gpt_neox": (
        {"intermediate_size": 64},
        {
            "mlp.dense_h_to_4h.weight": (0,),
            "mlp.dense_h_to_4h.bias": (0,),
            "mlp.dense_4h_to_h.weight": (1,),
        },
        "mlp.dense_4h_to_h",
    ),
}


@pytest.mark.parametrize("family", NEURONS)
def test_neurons(family: str, tiny_model: Callable[..., Path]) -> None:
    config, dims, reader = NEURONS[family]
    skeleton = skeleton_of(tiny_model(family))
    part = neurons(skeleton, 0.5)
    (kept,) = config.values()
    assert (part.name, part.total, part.kept) == ("neurons", 2 * kept, kept)
    assert part.config == config
    for index, block in enumerate(skeleton.blocks):
        assert suffixes(part, block) == dims
        assert part.readers[index].name.endswith(f".{index}.{reader}")
    smaller = build_on_meta(changed(skeleton.source, part.config)).state_dict()
    before = skeleton.model.state_dict()
    for name, tensor in before.items():
        expected = list(tensor.shape)
        for dim in part.dims.get(name, ()):
            expected[dim] //= 2
        assert list(smaller[name].shape) == expected


@pytest.mark.parametrize(
    ("share", "total", "kept"),
    [
        (0.5, 128, 64),
        (0.3, 128, 40),
        (0.01, 128, 8),
        (1.0, 128, 128),
        (0.75, 1024, 768),
        (0.52, 1024, 512),
        (0.99, 1024, 1024),
    ],
)
def test_shares_are_rounded_to_multiples(
    share: float, total: int, kept: int, tiny_model: Callable[..., Path]
) -> None:
    part = neurons(skeleton_of(tiny_model("llama", intermediate_size=total)), share)
    assert part.kept == kept
    assert part.kept % part.step == 0
    assert part.step == (64 if total == 1024 else 8)


def test_groups_take_their_query_heads_along(tiny_model: Callable[..., Path]) -> None:
    skeleton = skeleton_of(tiny_model("llama"))
    part = groups(skeleton, 0.5)
    assert (part.total, part.kept) == (2, 1)
    assert part.config == {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    assert suffixes(part, skeleton.blocks[1]) == {
        "self_attn.q_proj.weight": (0,),
        "self_attn.k_proj.weight": (0,),
        "self_attn.v_proj.weight": (0,),
        "self_attn.o_proj.weight": (1,),
    }
    assert [view.name for view in part.readers.values()] == [f"{b}.self_attn.o_proj" for b in skeleton.blocks]


def test_heads_without_groups_go_one_by_one(tiny_model: Callable[..., Path]) -> None:
    skeleton = skeleton_of(tiny_model("llama", num_key_value_heads=4))
    part = groups(skeleton, 0.5)
    assert (part.total, part.kept, part.config["num_attention_heads"]) == (4, 2, 2)
    # Three heads do not go with a width of 64: the next larger number is taken.
    assert groups(skeleton, 0.75).kept == 4


def test_numbers_that_a_block_keeps() -> None:
    part = Part("neurons", 8, 4, {}, {}, {}, counts={1: 6})
    assert (part.stays(0), part.stays(1)) == (4, 6)


REFUSED: dict[str, tuple[str, Callable[[Skeleton, float], Part], str]] = {
    "gate and up in one": ("phi3", neurons, "stored together with others"),
    "experts alone": ("mixtral", neurons, "stored together with others|none in every block"),
    "queries, keys and values in one": ("phi3", groups, "stored together with others"),
    "heads tied to the width": ("gpt2", groups, "'width_pruning.groups'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_cut_is_refused(case: str, tiny_model: Callable[..., Path]) -> None:
    family, kind, words = REFUSED[case]
    with pytest.raises(UserError, match=words):
        kind(skeleton_of(tiny_model(family)), 0.5)


def test_a_model_without_such_a_setting_is_refused() -> None:
    skeleton: Any = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(hidden_size=64)))
    with pytest.raises(UserError, match="how many neurons"):
        neurons(skeleton, 0.5)
    with pytest.raises(UserError, match="how many heads"):
        groups(skeleton, 0.5)


def test_changed_settings_leave_the_tensors(tiny_model: Callable[..., Path]) -> None:
    source = open_source(tiny_model("llama"))
    other = changed(changed(source, {"intermediate_size": 64}), {"rms_norm_eps": 0.5})
    assert other.changes == {"intermediate_size": 64, "rms_norm_eps": 0.5}
    assert other.headers == source.headers
    assert source.config["intermediate_size"] == 128
