"""Checkpoints without some of their blocks: what transformers loads computes what the model with its blocks removed does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from compress.checkpoint.source import Source, open_source
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton
from compress.prune.block_removal import _renumbered, without_blocks

_SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": [1, 2, 3, 4],
    "pad_token_id": 1,
}
_GPT: dict[str, Any] = {"vocab_size": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
# Every count of blocks is 4 here, as are the heads: the setting has to be told from others of the same value.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _SMALL,
    "gpt2": _GPT,
    "gemma3_text": {**_SMALL, "sliding_window": 8, "sliding_window_pattern": 2},
    "gpt_neo": {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "max_position_embeddings": 64,
        "window_size": 8,
    },
    "mpt": {"vocab_size": 64, "d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 64},
    "mixtral": {**_SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
    "smollm3": {**_SMALL, "no_rope_layer_interval": 2},
    "gemma3": {
        "text_config": {**_SMALL, "sliding_window": 8},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
    },
    "qwen2_moe": {
        **_SMALL,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 2,
    },
    "diffllama": _SMALL,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family → a random checkpoint of four blocks."""
    folders: dict[str, Path] = {}

    def write(family: str) -> Path:
        if family not in folders:
            torch.manual_seed(0)
            config = AutoConfig.for_model(family, **CONFIGS[family])
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            for parameter in model.parameters():
                nn.init.normal_(parameter.data, std=0.1)
            folders[family] = tmp_path_factory.mktemp(family)
            model.save_pretrained(folders[family])
        return folders[family]

    return write


def skeleton_of(folder: Path) -> Skeleton:
    return open_skeleton(open_source(folder))


def save(source: Source, folder: Path) -> None:
    folder.mkdir()
    tensors = {name: source.read(name).contiguous() for name in source.headers}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(source.config))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(input_ids=torch.arange(2, 26)[None], use_cache=False).logits
    return result


def cut_in_memory(folder: Path, blocks: Sequence[str], dropped: Sequence[int]) -> Any:
    """The whole model as transformers loads it, the dropped blocks taken out of its list."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    name = blocks[0].rpartition(".")[0]
    kept = [block for index, block in enumerate(model.get_submodule(name)) if index not in dropped]
    model.set_submodule(name, nn.ModuleList(kept))
    settings = model.config.get_text_config()
    if getattr(settings, "layer_types", None):
        settings.layer_types = [t for i, t in enumerate(settings.layer_types) if i not in dropped]
    settings.num_hidden_layers = len(kept)
    return model


DENSE = ("llama", "gpt2", "gemma3_text", "gpt_neo", "mpt", "mixtral", "smollm3", "gemma3")


@pytest.mark.parametrize("dropped", [(1,), (0, 2)])
@pytest.mark.parametrize("family", DENSE)
def test_the_smaller_model(
    written: Callable[[str], Path], tmp_path: Path, family: str, dropped: tuple[int, ...]
) -> None:
    skeleton = skeleton_of(written(family))
    source = without_blocks(skeleton, dropped)
    assert source.dropped == dropped
    assert len(open_skeleton(source).blocks) == 4 - len(dropped)
    save(source, tmp_path / "out")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected = logits(cut_in_memory(written(family), skeleton.blocks, dropped))
    torch.testing.assert_close(logits(small), expected, rtol=1e-4, atol=1e-5)


def test_only_what_counts_blocks_changes(written: Callable[[str], Path]) -> None:
    source = without_blocks(skeleton_of(written("llama")), [3])
    assert source.changes == {"num_hidden_layers": 3}
    assert source.config["num_attention_heads"] == 4
    assert source.config["eos_token_id"] == [1, 2, 3, 4]
    text = without_blocks(skeleton_of(written("gemma3")), [3]).config
    assert text["text_config"]["num_hidden_layers"] == 3
    assert text["text_config"]["layer_types"] == ["sliding_attention"] * 3
    assert text["vision_config"]["num_hidden_layers"] == 4


def test_derived_settings_are_written_down(written: Callable[[str], Path], tmp_path: Path) -> None:
    """The kinds of attention that transformers would derive from the smaller number of blocks are others."""
    folder = tmp_path / "model"
    save(skeleton_of(written("gemma3_text")).source, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["layer_types"]
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window_pattern": 2}))
    source = without_blocks(skeleton_of(folder), [0])
    assert source.config["layer_types"] == ["full_attention", "sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("family", "dropped", "works"),
    [
        ("qwen2_moe", (1,), False),
        ("qwen2_moe", (1, 2), True),
        ("diffllama", (0,), False),
        ("diffllama", (3,), True),
    ],
)
def test_blocks_that_depend_on_their_place(
    written: Callable[[str], Path], family: str, dropped: tuple[int, ...], works: bool
) -> None:
    """Every other block of experts, and a factor that follows the block's index: some blocks can go, some cannot."""
    skeleton = skeleton_of(written(family))
    if works:
        assert len(open_skeleton(without_blocks(skeleton, dropped)).blocks) == 4 - len(dropped)
        return
    with pytest.raises(UserError, match="depend on their place"):
        without_blocks(skeleton, dropped)


@pytest.mark.parametrize("dropped", [(0, 1, 2, 3), (4,), (-1,)])
def test_blocks_that_are_not_there(written: Callable[[str], Path], dropped: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="a model of 4 blocks cannot lose"):
        without_blocks(skeleton_of(written("llama")), dropped)


def test_nothing_dropped_is_the_source_itself(written: Callable[[str], Path]) -> None:
    skeleton = skeleton_of(written("llama"))
    assert without_blocks(skeleton, ()) is skeleton.source


def test_a_smaller_model_can_lose_blocks_again(written: Callable[[str], Path]) -> None:
    once = open_skeleton(without_blocks(skeleton_of(written("gemma3_text")), [1]))
    twice = without_blocks(once, [0])
    whole = open_source(written("gemma3_text"))
    assert len(open_skeleton(twice).blocks) == 2
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(twice.read(name.format(0)), whole.read(name.format(2)))
    assert torch.equal(twice.read(name.format(1)), whole.read(name.format(3)))


def stand_in(by_block: dict[int, list[str]], others: Sequence[str] = ()) -> Any:
    """As much of a skeleton as renumbering reads: the disk tensors of each block, and further ones."""
    stored = {f"m.{i}.p{k}": (name,) for i, names in by_block.items() for k, name in enumerate(names)}
    names = [*dict.fromkeys(name for names in by_block.values() for name in names), *others]
    source = SimpleNamespace(path=Path("model"), headers={name: name for name in names})
    return SimpleNamespace(source=source, blocks=[f"m.{i}" for i in by_block], stored=stored)


def test_numbers_of_experts_and_of_parts_stay() -> None:
    names = {
        i: [f"part.0.layers.{i}.w", f"part.0.layers.{i}.experts.0.w", f"part.0.layers.{i}.experts.1.w"]
        for i in (0, 1, 2)
    }
    others = [
        "part.0.layers.1.bias_that_nobody_reads",
        "part.0.layers.3.next_token.w",
        "part.0.embed",
        "layers.1.w",
    ]
    renumbered = _renumbered(stand_in(names, others), [0, 2])
    moved = {new: old for new, old in renumbered.items() if new != old}
    assert moved == {
        "part.0.layers.1.w": "part.0.layers.2.w",
        "part.0.layers.1.experts.0.w": "part.0.layers.2.experts.0.w",
        "part.0.layers.1.experts.1.w": "part.0.layers.2.experts.1.w",
    }
    assert "part.0.layers.1.bias_that_nobody_reads" not in renumbered
    assert {"part.0.layers.3.next_token.w", "part.0.embed", "layers.1.w"} <= renumbered.keys()


def test_blocks_in_two_places() -> None:
    names = {i: [f"attention.{i}.w", f"mlp.{i}.w"] for i in (0, 1)}
    assert _renumbered(stand_in(names), [1]) == {"attention.0.w": "attention.1.w", "mlp.0.w": "mlp.1.w"}


@pytest.mark.parametrize(
    "names",
    [
        {0: ["all.w"], 1: ["all.w"]},
        {0: ["layers.0.w", "first.w"], 1: ["layers.1.w"]},
        {0: ["l.1.w"], 1: ["l.2.w"]},
    ],
)
def test_tensors_without_their_block_s_number_are_refused(names: dict[int, list[str]]) -> None:
    with pytest.raises(UserError, match="not stored by the number of its block"):
        _renumbered(stand_in(names), [0])


def test_other_changes_of_the_source_stay(written: Callable[[str], Path]) -> None:
    source = open_source(written("llama"))
    changed = replace(source, config={**source.config, "rms_norm_eps": 0.5}, changes={"rms_norm_eps": 0.5})
    small = without_blocks(open_skeleton(changed), [2])
    assert small.changes == {"rms_norm_eps": 0.5, "num_hidden_layers": 3}
    assert open_skeleton(small).model.config.rms_norm_eps == 0.5
