"""The walk over the blocks: the outputs of the whole model, one block in memory, and nothing left behind by an exception."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import compress
from compress.calibrate.walk import loaded_blocks, walk_blocks
from compress.checkpoint.source import open_source
from compress.models.skeleton import Skeleton, open_skeleton

FP32: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture
def skeleton(tiny_model: Callable[..., Path]) -> Skeleton:
    return open_skeleton(open_source(tiny_model("llama", num_hidden_layers=4)))


def token_ids() -> Tensor:
    return torch.randint(2, 256, (3, 12), generator=torch.Generator().manual_seed(0))


def loaded(skeleton: Skeleton) -> list[int]:
    """The blocks that have a parameter in memory."""
    return [
        index
        for index in range(len(skeleton.blocks))
        if any(not parameter.is_meta for parameter in skeleton.block_module(index).parameters())
    ]


def expected_outputs(skeleton: Skeleton, blocks: list[int]) -> Tensor:
    """What transformers computes with only these blocks, before the final norm."""
    model = AutoModelForCausalLM.from_pretrained(skeleton.source.path, dtype=torch.float32).eval()
    model.model.layers = torch.nn.ModuleList([model.model.layers[index] for index in blocks])
    model.model.norm = torch.nn.Identity()
    with torch.no_grad():
        outputs: Tensor = model.model(token_ids(), use_cache=False).last_hidden_state
    return outputs


@pytest.mark.parametrize("blocks", [[0, 1, 2, 3], [0, 2], [3]])
def test_the_outputs_are_those_of_the_model(skeleton: Skeleton, blocks: list[int]) -> None:
    with walk_blocks(skeleton, token_ids(), **FP32, blocks=blocks, batch_size=2, through_last=True) as walk:
        assert list(walk) == blocks
        outputs = torch.cat([hidden for hidden, _ in walk.stream.inputs(0)])
    torch.testing.assert_close(outputs, expected_outputs(skeleton, blocks), rtol=1e-4, atol=1e-5)


def test_the_last_block_is_not_run_unless_asked_for(skeleton: Skeleton) -> None:
    with walk_blocks(skeleton, token_ids(), **FP32) as walk:
        list(walk)
        outputs = torch.cat([hidden for hidden, _ in walk.stream.inputs(0)])
    torch.testing.assert_close(outputs, expected_outputs(skeleton, [0, 1, 2]), rtol=1e-4, atol=1e-5)


def test_changed_weights_reach_the_next_block(skeleton: Skeleton) -> None:
    with walk_blocks(skeleton, token_ids(), **FP32, blocks=[0, 1]) as walk:
        for index in walk:
            if index == 0:
                (before,) = (hidden for hidden, _ in walk.stream.inputs(0))
                for name, parameter in skeleton.block_module(0).named_parameters():
                    if name.endswith(("o_proj.weight", "down_proj.weight")):
                        parameter.zero_()  # the block then returns its input
            else:
                (after,) = (hidden for hidden, _ in walk.stream.inputs(1))
                assert torch.equal(before, after)


def test_one_block_is_in_memory(skeleton: Skeleton) -> None:
    with walk_blocks(skeleton, token_ids(), **FP32) as walk:
        for index in walk:
            assert loaded(skeleton) == [index]
    assert loaded(skeleton) == []


@pytest.mark.parametrize("how", ["raise", "break"])
def test_an_early_end_frees_everything(skeleton: Skeleton, how: str, tmp_path: Path) -> None:
    left: list[int] = []

    def run() -> None:
        with (
            walk_blocks(skeleton, token_ids(), **FP32, spill_dir=tmp_path) as walk,
            loaded_blocks(skeleton, [3, 2], **FP32, leave=left.append) as others,
        ):
            streams.append(walk.stream)
            assert [next(others), next(others)] == [3, 2]
            for index in walk:
                if index == 1 and how == "raise":
                    raise RuntimeError("stop")
                if index == 1:
                    break
            assert loaded(skeleton) == [1, 2]

    streams: list[Any] = []
    if how == "raise":
        with pytest.raises(RuntimeError, match="stop") as caught:
            run()
        assert caught.traceback  # the frames are alive, and so would be a generator that nobody closes
    else:
        run()
    assert loaded(skeleton) == []
    assert left == [3]
    with pytest.raises(ValueError, match="prepare"):
        next(streams[0].inputs(0))


def test_a_block_that_cannot_be_loaded_whole_is_released(skeleton: Skeleton) -> None:
    def load(index: int) -> None:
        skeleton.load_block(index, **FP32)
        raise RuntimeError("disk gone")

    with (
        pytest.raises(RuntimeError, match="disk gone"),
        loaded_blocks(skeleton, [2], **FP32, load=load) as blocks,
    ):
        next(blocks)
    assert loaded(skeleton) == []


def test_the_caller_s_own_loading_and_steps(skeleton: Skeleton) -> None:
    events: list[Any] = []

    def load(index: int) -> None:
        events.append(("load", index))
        skeleton.load_block(index, **FP32)

    def release(index: int) -> None:
        events.append(("release", index))
        skeleton.release_block(index)

    @contextmanager
    def step(name: str) -> Iterator[None]:
        events.append(name)
        yield

    with walk_blocks(
        skeleton, token_ids(), **FP32, blocks=[0, 3], load=load, release=release, step=step
    ) as walk:
        events.extend(walk)
    assert events == ["embed", ("load", 0), 0, "advance", ("release", 0), ("load", 3), 3, ("release", 3)]


def test_only_the_walk_releases_blocks() -> None:
    package = Path(compress.__file__).parent
    users = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "release_block" in path.read_text()
    }
    assert users == {"calibrate/walk.py", "models/skeleton.py"}
