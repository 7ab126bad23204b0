"""Rotations: models compute the same logits in fp32 with every weight changed, and what cannot be exact is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.zoo.models import build
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton
from compress.transforms.rotate import rotate
from compress.transforms.rotated_source import RotatedSource
from compress.transforms.rotation import Rotation, notes_of, plan_rotation
from compress.transforms.tracing import find_spaces

Tiny = Callable[..., Path]
FAMILIES = (
    "llama", "llama_tied", "qwen3", "mistral", "phi3", "gpt2", "opt", "gpt_neox", "mixtral", "qwen3_moe", "gpt_oss",
)  # fmt: skip
PLAIN = Rotation()
KINDS = (
    "cohere",
    "deepseek_v3",
    "falcon",
    "gemma",
    "mamba2",
    "mpt",
    "olmo",
    "qwen2",
    "qwen3_next",
    "starcoder2",
)


@pytest.fixture
def in_fp32(tiny_model: Tiny, tmp_path: Path) -> Callable[[str], Path]:
    """A tiny model of a family with its weights in fp32."""

    def write(family: str) -> Path:
        source, folder = tiny_model(family), tmp_path / family
        folder.mkdir()
        tensors = {
            name: tensor.float() for name, tensor in load_file(str(source / "model.safetensors")).items()
        }
        save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
        config = json.loads((source / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
        return folder

    return write


def _logits(skeleton: Skeleton) -> Tensor:
    ids = torch.randint(2, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    with skeleton.loaded_whole(device="cpu", dtype=torch.float32), torch.no_grad():
        found: Tensor = skeleton.model(ids, use_cache=False).logits.clone()
    return found


def _rotated(skeleton: Skeleton, settings: Rotation = PLAIN, seed: int = 0) -> RotatedSource:
    return rotate(skeleton, plan_rotation(skeleton, settings, seed))


def _assert_same(skeleton: Skeleton, source: RotatedSource) -> None:
    before, after = _logits(skeleton), _logits(open_skeleton(source))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5 * float(before.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_computes_the_same(in_fp32: Callable[[str], Path], family: str) -> None:
    skeleton = open_skeleton(open_source(in_fp32(family)))
    source = _rotated(skeleton)
    _assert_same(skeleton, source)
    for view in skeleton.views:
        assert not all(torch.equal(source.read(name), skeleton.source.read(name)) for name in view.sources), (
            view.name
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_the_zoo_computes_the_same(tmp_path: Path, kind: str) -> None:
    model = build(kind).float()
    model.config.dtype = torch.float32
    model.save_pretrained(tmp_path)
    skeleton = open_skeleton(open_source(tmp_path))
    source = _rotated(skeleton)
    assert source.rotation["residual"].startswith("Hadamard")
    _assert_same(skeleton, source)


def test_blocks_of_the_formats_groups(in_fp32: Callable[[str], Path]) -> None:
    skeleton = open_skeleton(open_source(in_fp32("llama")))
    source = _rotated(skeleton, Rotation(block=8))
    assert source.rotation["residual"] == "Hadamard 8 in 8 blocks"
    assert source.rotation["inner"] == ["Hadamard 8 in 2 blocks"]
    _assert_same(skeleton, source)
    # One feature of the embeddings goes into the eight of its block.
    name = "model.embed_tokens.weight"
    before, after = skeleton.source.read(name), source.read(name)
    torch.testing.assert_close(after[:, :8].square().sum(1), before[:, :8].square().sum(1))


def test_values_alone(in_fp32: Callable[[str], Path]) -> None:
    skeleton = open_skeleton(open_source(in_fp32("llama")))
    source = _rotated(skeleton, Rotation(residual="none"))
    changed = {
        name for name in source.headers if not torch.equal(source.read(name), skeleton.source.read(name))
    }
    names = {f"model.layers.{i}.self_attn.{part}_proj.weight" for i in range(2) for part in "vo"}
    assert changed == names
    _assert_same(skeleton, source)
    assert skeleton.source.raw_bytes("lm_head.weight") == source.raw_bytes("lm_head.weight")


def test_the_stream_alone(in_fp32: Callable[[str], Path]) -> None:
    skeleton = open_skeleton(open_source(in_fp32("llama")))
    source = _rotated(skeleton, Rotation(values=False))
    assert "inner" not in source.rotation
    _assert_same(skeleton, source)


def test_norms_are_left_without_scales(in_fp32: Callable[[str], Path]) -> None:
    skeleton = open_skeleton(open_source(in_fp32("llama")))
    source = _rotated(skeleton)
    for name in source.headers:
        if name.endswith("norm.weight"):
            assert bool((source.read(name) == 1).all()), name


def test_a_tied_head_is_written_apart_and_counted(in_fp32: Callable[[str], Path]) -> None:
    skeleton = open_skeleton(open_source(in_fp32("llama_tied")))
    plan = plan_rotation(skeleton, Rotation(), 0)
    source = rotate(skeleton, plan)
    assert set(source.headers) - set(skeleton.source.headers) == {"lm_head.weight"}
    assert source.config["tie_word_embeddings"] is False
    assert not torch.equal(source.read("lm_head.weight"), source.read("model.embed_tokens.weight"))
    assert any(
        "lm_head.weight takes up the last norm" in note and "65.5 kB" in note
        for note in notes_of(skeleton, plan)
    )
    untied = open_skeleton(source)
    assert not untied.tied


def test_a_tied_head_that_is_on_disk_too(in_fp32: Callable[[str], Path]) -> None:
    folder = in_fp32("llama_tied")
    tensors = load_file(str(folder / "model.safetensors"))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    skeleton = open_skeleton(open_source(folder))
    assert skeleton.tied
    source = _rotated(skeleton)
    assert set(source.headers) == set(skeleton.source.headers)
    _assert_same(skeleton, source)


def test_seeds_and_layers_have_signs_of_their_own(in_fp32: Callable[[str], Path]) -> None:
    skeleton = open_skeleton(open_source(in_fp32("llama")))
    one, again, two = (_rotated(skeleton, seed=seed) for seed in (0, 0, 1))
    name = "model.layers.0.self_attn.v_proj.weight"
    assert torch.equal(one.read(name), again.read(name))
    assert not torch.equal(one.read(name), two.read(name))
    plan = plan_rotation(skeleton, Rotation(), 0)
    first, second = (rotated.matrix.matrix() for rotated in plan.inner)
    assert not torch.equal(first, second)


def test_what_cannot_be_exact_is_refused_in_a_sentence(tiny_model: Tiny) -> None:
    skeleton = open_skeleton(open_source(tiny_model("gemma3")))
    with pytest.raises(
        UserError, match=r"residual stream of Gemma3ForCausalLM cannot be rotated exactly: .* scales it"
    ):
        plan_rotation(skeleton, Rotation(), 0)
    assert len(plan_rotation(skeleton, Rotation(residual="none"), 0).inner) == 2


def test_a_model_without_values_to_rotate(tiny_model: Tiny) -> None:
    skeleton = open_skeleton(open_source(tiny_model("gpt_neox")))
    spaces = find_spaces(skeleton)
    assert not spaces.inner  # queries, keys and values alternate
    with pytest.raises(UserError, match="has no values that one linear layer writes"):
        plan_rotation(skeleton, Rotation(residual="none"), 0, spaces)


def test_a_block_that_does_not_divide_is_refused(tiny_model: Tiny) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    with pytest.raises(
        UserError, match=r"rotation\.block: blocks of 24 do not divide 64 features of model\.embed_tokens"
    ):
        plan_rotation(skeleton, Rotation(block=24), 0)
    with pytest.raises(
        UserError, match=r"blocks of 32 do not divide 16 features of model\.layers\.0\.self_attn\.v_proj"
    ):
        plan_rotation(skeleton, Rotation(block=32), 0)


def test_a_shift_behind_a_scale_of_zero_is_refused(in_fp32: Callable[[str], Path]) -> None:
    folder = in_fp32("gpt2")
    tensors = load_file(str(folder / "model.safetensors"))
    scale = next(name for name in tensors if name.endswith("h.0.ln_1.weight"))
    tensors[scale][5] = 0
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    skeleton = open_skeleton(open_source(folder))
    with pytest.raises(UserError, match=r"ln_1\.weight is nearly zero for features that .*ln_1\.bias shifts"):
        _rotated(skeleton)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"residual": "none", "values": False}, "nothing to rotate"), ({"block": 1}, "at least 2 features")],
)
def test_settings_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rotation(**options)  # type: ignore[arg-type]
