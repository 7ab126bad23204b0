"""What ``config.json`` tells compressed-tensors' loaders, and which weights they cannot read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.checkpoint.source import open_source
from compress.formats.compressed_tensors import CompressedTensors
from compress.formats.dense_source import dense_source, stays_packed
from compress.formats.read import packed_weights
from compress.models.skeleton import Skeleton, open_skeleton
from compress.planning.make import make_plan
from compress.planning.plan import Plan
from compress.recipe.recipe import Recipe

FOUR = {"quantize": {"bits": 4, "group_size": 16}}
ASYMMETRIC = {"quantize": {"bits": 4, "group_size": 16, "symmetric": False}}
EIGHT = {"quantize": {"bits": 8, "group_size": "channel"}, "activations": {}}


@pytest.fixture(scope="module")
def skeletons(tiny_model: Callable[..., Path]) -> Callable[[str], Skeleton]:
    opened: dict[str, Skeleton] = {}

    def open_one(family: str) -> Skeleton:
        return opened.setdefault(family, open_skeleton(open_source(tiny_model(family))))

    return open_one


def planned(skeleton: Skeleton, *steps: dict[str, Any], format: str = "native") -> Plan:
    recipe = Recipe.parse({"name": "x", "steps": list(steps), "allow_split_groups": True})
    return make_plan(skeleton, recipe, format=format)


def config(skeleton: Skeleton, *steps: dict[str, Any]) -> dict[str, Any]:
    plan = planned(skeleton, *steps)
    return CompressedTensors().quantization_config(plan.weights, plan.facts)


def objection(skeleton: Skeleton, *steps: dict[str, Any]) -> str:
    plan = planned(skeleton, *steps, format="native")
    return str(CompressedTensors().objection(plan.weights, plan.facts))


def test_one_scheme_targets_the_class_and_ignores_the_rest(skeletons: Callable[[str], Skeleton]) -> None:
    found = config(skeletons("llama"), FOUR)
    (group,) = found["config_groups"].values()
    assert found["format"] == group["format"] == "pack-quantized"
    assert group["targets"] == ["Linear"]
    assert group["weights"] == {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16, "dynamic": False,
    }  # fmt: skip
    assert group["input_activations"] is None
    assert found["ignore"] == ["lm_head"]
    assert "dequantize" not in found


def test_weights_left_dense_are_ignored_by_name(skeletons: Callable[[str], Skeleton]) -> None:
    found = config(skeletons("llama"), {**FOUR, "ignore": ["re:.*down_proj", "re:.*layers.1.*q_proj"]})
    assert found["ignore"] == [
        "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head",
    ]  # fmt: skip


def test_zero_points_are_only_read_by_decoding(skeletons: Callable[[str], Skeleton]) -> None:
    found = config(skeletons("llama"), {"quantize": {"bits": 4, "group_size": 16, "symmetric": False}})
    (group,) = found["config_groups"].values()
    assert group["weights"]["symmetric"] is False
    assert found["dequantize"] is True


def test_several_schemes_go_by_exact_names(skeletons: Callable[[str], Skeleton]) -> None:
    found = config(skeletons("llama"), FOUR, {**EIGHT, "targets": ["re:.*down_proj"]})
    groups = {group["format"]: group for group in found["config_groups"].values()}
    assert found["format"] == "mixed-precision"
    assert groups["int-quantized"]["targets"] == [
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.down_proj",
    ]
    assert groups["int-quantized"]["weights"]["strategy"] == "channel"
    assert groups["int-quantized"]["weights"]["group_size"] is None
    assert groups["int-quantized"]["input_activations"]["strategy"] == "token"
    assert "Linear" not in groups["pack-quantized"]["targets"]


def test_what_lies_outside_the_blocks_is_named(skeletons: Callable[[str], Skeleton]) -> None:
    """Servers have classes of their own for heads and embeddings, which the target ``Linear`` does not reach."""
    found = config(skeletons("llama"), {**FOUR, "targets": ["linear", "embeddings", "head"]})
    (group,) = found["config_groups"].values()
    assert group["targets"] == ["Linear", "model.embed_tokens", "lm_head"]
    assert found["ignore"] == []


@pytest.mark.parametrize(
    ("family", "steps", "words"),
    [
        ("llama", [FOUR], "None"),
        ("llama", [EIGHT], "None"),
        ("mixtral", [{**FOUR, "targets": ["linear", "experts"]}], "None"),
        ("llama", [{"prune": {"sparsity": 0.5}, "solver": "wanda"}], "is stored as bitmask"),
        ("gpt2", [FOUR], "is a transposed Conv1D"),
        ("llama", [{**FOUR, "targets": ["embeddings", "head"]}], "None"),
        ("llama_tied", [{**FOUR, "targets": ["embeddings"]}], "is tied to lm_head"),
        ("opt", [{**FOUR, "targets": ["re:.*embed_positions"]}], "is a table of positions"),
        ("llama", [{**ASYMMETRIC, "targets": ["embeddings"]}], "symmetric packed integers alone"),
        ("phi3", [FOUR], "None"),
        ("gpt_oss", [{**FOUR, "targets": ["experts"]}], "is a part of a fused tensor on disk"),
        ("mixtral", [{**EIGHT, "targets": ["linear", "experts"]}], "is an expert with rounded inputs"),
        (
            "mixtral",
            [
                {
                    "targets": ["linear", "experts"],
                    "quantize": {"bits": 4, "group_size": 16, "symmetric": False},
                }
            ],
            "is an asymmetric expert",
        ),
        ("mixtral", [{**FOUR, "targets": ["linear"]}], "is an expert left dense"),
        ("mixtral", [{"quantize": {"type": "nvfp4"}}], "is an expert of NVFP4"),
        ("mixtral", [{"quantize": {"type": "mxfp4"}}], "None"),
        ("llama", [{"quantize": {"type": "fp8"}, "activations": {"type": "float"}}], "None"),
        (
            "mixtral",
            [
                {**FOUR, "targets": ["experts"]},
                {"targets": ["re:.*w2"], "quantize": {"bits": 8, "group_size": 16}},
            ],
            "experts of several schemes",
        ),
        (
            "llama",
            [
                FOUR,
                {
                    "targets": ["re:.*down_proj"],
                    "quantize": {"bits": 4, "group_size": 16, "symmetric": False},
                },
            ],
            "several schemes of which one is asymmetric",
        ),
    ],
)
def test_what_its_loaders_cannot_read(
    family: str, steps: list[dict[str, Any]], words: str, skeletons: Callable[[str], Skeleton]
) -> None:
    assert words in objection(skeletons(family), *steps)


def test_floats_are_named_as_the_library_names_them(skeletons: Callable[[str], Skeleton]) -> None:
    found = config(
        skeletons("llama"),
        {"quantize": {"type": "nvfp4"}},
        {"targets": ["re:.*down_proj"], "quantize": {"type": "fp8"}},
    )
    groups = {group["format"]: group["weights"] for group in found["config_groups"].values()}
    assert found["format"] == "mixed-precision"
    assert groups["nvfp4-pack-quantized"] == {
        "num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16, "dynamic": False,
        "scale_dtype": "torch.float8_e4m3fn",
    }  # fmt: skip
    assert groups["naive-quantized"]["strategy"] == "channel"
    rounded = {"quantize": {"type": "fp8"}, "activations": {"type": "float"}}
    assert config(skeletons("llama"), rounded)["format"] == "float-quantized"


@pytest.mark.parametrize(
    "quantize",
    [{"type": "nvfp4"}, {"type": "mxfp4"}, {"type": "mxfp8"}, {"type": "fp8", "group_size": "tensor"}],
)
def test_floats_are_read_packed_and_as_a_source(
    quantize: dict[str, Any],
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    write_rounded: Callable[..., Any],
    make_recipe: Callable[..., Any],
) -> None:
    """What is written is read back packed for running, and by the reader of foreign checkpoints, to the same bits."""
    written = write_rounded(
        tiny_model("llama"),
        tmp_path / "out",
        make_recipe({"quantize": quantize}),
        format="compressed-tensors",
    )
    source = open_source(tmp_path / "out")
    assert stays_packed(source)
    packed, dense = packed_weights(source), dense_source(source)
    assert packed.keys() == written.dense.keys()
    for name, weight in packed.items():
        found = weight.layout.decode(weight.tensors(source), weight.shape, torch.float32)
        assert torch.equal(found, written.dense[name])
        assert torch.equal(dense.read(f"{name}.weight").float(), found.to(torch.bfloat16).float())
