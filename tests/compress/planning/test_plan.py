"""The plan: exact to the byte, complete, and refusing what cannot work before anything is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.checkpoint.source import Source, open_source
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton
from compress.planning.fingerprint import fingerprint
from compress.planning.make import make_plan
from compress.planning.plan import Plan
from compress.recipe.recipe import Recipe

FAMILIES = (
    "llama",
    "llama_tied",
    "gemma3",
    "phi3",
    "gpt2",
    "opt",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
)
W4 = {"quantize": {"bits": 4, "group_size": 16}}


@pytest.fixture(scope="module")
def skeleton_of(tiny_model: Callable[..., Path]) -> Callable[[str], Skeleton]:
    opened: dict[str, Skeleton] = {}

    def open_one(family: str) -> Skeleton:
        if family not in opened:
            opened[family] = open_skeleton(open_source(tiny_model(family)))
        return opened[family]

    return open_one


@pytest.mark.parametrize("format", ["auto", "native", "dense"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bytes_on_disk_are_those_of_the_plan(
    family: str,
    format: str,
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    write_rounded: Callable[..., Any],
    tmp_path: Path,
) -> None:
    written = write_rounded(
        tiny_model(family), tmp_path / "out", make_recipe(W4), format=format, max_shard_size=60_000
    )
    sizes = {path.name: path.stat().st_size for path in written.out.glob("*.safetensors")}
    assert sizes == {shard.filename: shard.nbytes for shard in written.plan.shards}
    assert sum(sizes.values()) == written.plan.total_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_the_source_is_packed_or_passed_and_every_weight_accounted_for(
    family: str, skeleton_of: Callable[[str], Skeleton], make_recipe: Callable[..., Recipe]
) -> None:
    skeleton = skeleton_of(family)
    plan = make_plan(skeleton, make_recipe(W4))
    packed = {source for weight in plan.weights for source in weight.view.sources}
    assert packed.isdisjoint(plan.passed_through)
    assert packed.union(plan.passed_through) == set(skeleton.source.headers)
    skipped = {entry.name: entry.reason for entry in plan.skipped}
    assert all(skipped.values())
    assert {weight.name for weight in plan.weights}.isdisjoint(skipped)
    assert {weight.name for weight in plan.weights} | set(skipped) == {v.name for v in skeleton.views} | set(
        skeleton.unsupported
    )
    for name, info in skeleton.source.headers.items():
        if len(info.shape) >= 2 and name in plan.passed_through:
            assert name in skipped or name.removesuffix(".weight") in skipped, name


def test_the_figures_add_up(
    skeleton_of: Callable[[str], Skeleton], make_recipe: Callable[..., Recipe]
) -> None:
    skeleton = skeleton_of("llama")
    plan = make_plan(skeleton, make_recipe(W4))
    # 4 bits, a bf16 scale for 16 columns, and the 16 bytes that record the shape
    shapes = sum(8 * 16 for _ in plan.weights) / sum(weight.numel for weight in plan.weights)
    assert plan.bits_per_weight == pytest.approx(4 + 16 / 16 + shapes)
    assert plan.bits_per_weight < plan.bits_per_weight_model < 16
    assert plan.source_bytes == sum(file.stat().st_size for file in skeleton.source.files)
    assert make_plan(skeleton, make_recipe(W4), format="dense").bits_per_weight == 16
    assert json.loads(json.dumps(plan.to_json()))["total_bytes"] == plan.total_bytes
    assert [len(plan.block(index)) for index in (0, 1, None)] == [7, 7, 0]
    assert not plan.needs_data


def test_memory_and_needs_follow_the_solver(
    skeleton_of: Callable[[str], Skeleton], make_recipe: Callable[..., Recipe]
) -> None:
    skeleton = skeleton_of("llama")
    plain = make_plan(skeleton, make_recipe(W4))
    gptq = make_plan(skeleton, make_recipe({**W4, "solver": "gptq"}))
    assert all("gram" in needs for needs in gptq.needs.values())
    assert gptq.needs_data
    assert gptq.peak_memory > plain.peak_memory > 0
    longer = make_recipe({**W4, "solver": "gptq"}, calibrate={"samples": 256})
    assert make_plan(skeleton, longer).peak_memory - gptq.peak_memory == 128 * 2048 * 64 * 2


def _names(plan: Plan) -> set[str]:
    return {weight.name.removeprefix("model.layers.") for weight in plan.weights}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([{**W4, "targets": ["model.layers.0.self_attn.o_proj"]}], {"0.self_attn.o_proj"}),
        ([{**W4, "targets": ["re:.*down_proj"]}], {"0.mlp.down_proj", "1.mlp.down_proj"}),
        ([{**W4, "targets": ["lm_head"]}], {"lm_head"}),
        ([{**W4, "targets": ["embeddings"]}], {"model.embed_tokens"}),
        (
            [{**W4, "targets": ["linear"], "ignore": ["re:.*self_attn", "re:.*(gate|up)_proj", "lm_head"]}],
            {"0.mlp.down_proj", "1.mlp.down_proj"},
        ),
    ],
)
def test_targets(
    steps: list[Any],
    expected: set[str],
    skeleton_of: Callable[[str], Skeleton],
    make_recipe: Callable[..., Recipe],
) -> None:
    assert _names(make_plan(skeleton_of("llama"), make_recipe(*steps))) == expected


def test_the_last_step_that_takes_a_weight_has_it(
    skeleton_of: Callable[[str], Skeleton], make_recipe: Callable[..., Recipe]
) -> None:
    plan = make_plan(
        skeleton_of("llama"),
        make_recipe(W4, {"targets": ["re:.*o_proj"], "quantize": {"bits": 8, "group_size": 16}}),
    )
    bits = {weight.name.rpartition(".")[2]: weight.layout.to_json()["bits"] for weight in plan.weights}
    assert bits == {
        **dict.fromkeys(["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"], 4),
        "o_proj": 8,
    }


def test_the_head_goes_by_one_name_in_every_family(
    skeleton_of: Callable[[str], Skeleton], make_recipe: Callable[..., Recipe]
) -> None:
    plan = make_plan(skeleton_of("gpt_neox"), make_recipe({**W4, "targets": ["lm_head"]}))
    assert [weight.view.kind for weight in plan.weights] == ["head"]


@pytest.mark.parametrize(
    ("family", "step", "sentence"),
    [
        (
            "llama",
            {"targets": ["re:layers.*"]},
            r"steps\.0\.targets: 're:layers\.\*' matches no weight, anchored",
        ),
        ("llama", {"targets": ["re:("]}, "is not a regular expression"),
        ("llama", {"targets": ["linears"]}, "'linears' matches no weight; did you mean 'linear'"),
        (
            "llama",
            {"targets": ["model.layers.0.self_attn.q_prj"]},
            r"did you mean 'model\.layers\.\d\.self_attn\.q_proj'",
        ),
        ("llama", {"ignore": ["re:.*router"]}, r"steps\.0\.ignore: 're:\.\*router' matches no weight"),
        ("llama", {"targets": ["experts"]}, r"targets \(experts\).*no weight of this model"),
        ("llama_tied", {"targets": ["lm_head"]}, "tied"),
        (
            "llama",
            {"quantize": {"bits": 4, "group_size": 100}},
            r"group size 100 does not divide the 64 inputs of .*q_proj: give --set quantize\.group_size=64",
        ),
        (
            "llama",
            {"targets": ["re:.*q_proj"]},
            r"q_proj \(bits 4.*\) and .*k_proj \(left as it is\).*allow_split_groups",
        ),
        ("mixtral", {"ignore": ["re:.*experts.1.w1"]}, "run as one weight"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(
    family: str,
    step: dict[str, Any],
    sentence: str,
    skeleton_of: Callable[[str], Skeleton],
    make_recipe: Callable[..., Recipe],
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        make_plan(skeleton_of(family), make_recipe({**W4, **step}))
    assert "\n" not in str(caught.value)


def test_groups_may_be_split_where_the_recipe_says_so(
    skeleton_of: Callable[[str], Skeleton], make_recipe: Callable[..., Recipe]
) -> None:
    recipe = make_recipe({**W4, "targets": ["re:.*q_proj"]}, allow_split_groups=True)
    assert len(make_plan(skeleton_of("llama"), recipe).weights) == 2
    recipe = make_recipe({**W4, "targets": ["re:.*q_proj"]})
    assert len(make_plan(skeleton_of("llama"), recipe, format="dense").weights) == 2


def test_a_form_that_cannot_hold_the_weights_is_refused(
    skeleton_of: Callable[[str], Skeleton], make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(
        UserError, match=r"format compressed-tensors cannot hold this: transformer\.h\.0.*Conv1D"
    ):
        make_plan(skeleton_of("gpt2"), make_recipe(W4), format="compressed-tensors")
    half = make_recipe({**W4, "ignore": ["re:.*experts.3.*"]}, allow_split_groups=True)
    with pytest.raises(UserError, match="shares the tensor"):
        make_plan(skeleton_of("gpt_oss"), half)
    assert make_plan(skeleton_of("gpt_oss"), half, format="dense").format == "dense"


def test_the_fingerprint_follows_all_that_decides_the_bytes(
    skeleton_of: Callable[[str], Skeleton], make_recipe: Callable[..., Recipe]
) -> None:
    skeleton = skeleton_of("llama")
    source: Source = skeleton.source
    plan = make_plan(skeleton, make_recipe(W4))
    same = fingerprint(plan, source, seed=0)
    assert fingerprint(make_plan(skeleton, make_recipe(W4)), source, seed=0) == same
    others = [
        fingerprint(plan, source, seed=1),
        fingerprint(make_plan(skeleton, make_recipe(W4), format="native"), source, seed=0),
        fingerprint(
            make_plan(skeleton, make_recipe({"quantize": {"bits": 3, "group_size": 16}})), source, seed=0
        ),
        fingerprint(make_plan(skeleton, make_recipe(W4), max_shard_size=50_000), source, seed=0),
    ]
    assert len({same, *others}) == 5


@pytest.mark.parametrize(
    ("target", "sequential", "told"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_a_target_that_its_inputs_do_not_go_with_is_told(
    skeleton_of: Callable[[str], Skeleton], target: bool, sequential: bool, told: bool
) -> None:
    step = {"targets": ["linear"], **W4, "solver": "gptq", "true_input_target": target}
    recipe = Recipe.parse({"name": "target", "true_sequential": sequential, "steps": [step]})
    notes = make_plan(skeleton_of("llama"), recipe).notes
    assert told == any("true_sequential: true" in note for note in notes)
