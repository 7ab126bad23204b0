"""Gradient moments on disk: written by block, read by a later call with the same inputs, computed anew with others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from compress.calibrate import gradient_store
from compress.calibrate.gradient_store import block_file, gradient_moments
from compress.checkpoint.source import open_source
from compress.models.skeleton import Skeleton, open_skeleton
from compress.score.statistics import Statistics

NEEDS = frozenset({"squared_gradient", "gradient_rows", "fisher", "output_gradients"})


@pytest.fixture
def skeleton(tiny_model: Callable[..., Path]) -> Skeleton:
    return open_skeleton(open_source(tiny_model("llama")))


def token_ids(seed: int = 0) -> Tensor:
    return torch.randint(2, 256, (3, 12), generator=torch.Generator().manual_seed(seed))


def needs_of(skeleton: Skeleton, needs: frozenset[str] = NEEDS) -> dict[str, frozenset[str]]:
    return {view.name: needs for view in skeleton.views if view.name.endswith("k_proj")}


def moments(
    skeleton: Skeleton, folder: Path, keep: Path | None = None, **changes: Any
) -> dict[int, Mapping[str, Statistics]]:
    folder.mkdir(exist_ok=True)
    options = {"tokens": token_ids(), "needs": needs_of(skeleton), "seed": 0, **changes}
    with gradient_moments(
        skeleton, device=torch.device("cpu"), folder=folder, keep=keep, **options
    ) as blocks:
        return dict(blocks)


@pytest.fixture
def backwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every backward pass that is begun."""
    calls: list[int] = []
    backward = gradient_store.backward

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return backward(*args, **options)

    monkeypatch.setattr(gradient_store, "backward", counted)
    return calls


def same(one: Statistics, other: Statistics) -> bool:
    fields = (
        "squared_gradient",
        "gradient_rows",
        "fisher_left",
        "fisher_right",
        "output_gradient_gram",
        "dense_gram",
    )
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in fields)


def test_a_file_for_each_block(skeleton: Skeleton, tmp_path: Path) -> None:
    by_block = moments(skeleton, tmp_path)
    assert list(by_block) == [1, 0]
    for index, statistics in by_block.items():
        (name,) = statistics
        stored = load_file(block_file(tmp_path, index))
        assert {key.rpartition("/")[0] for key in stored} == {name}
        assert torch.equal(stored[f"{name}/squared_gradient"], statistics[name].squared_gradient)
        assert torch.equal(stored[f"{name}/dense_gram"], statistics[name].dense_gram)


def test_a_later_call_takes_them_over(skeleton: Skeleton, tmp_path: Path, backwards: list[int]) -> None:
    first = moments(skeleton, tmp_path / "first", tmp_path / "keep")
    second = moments(skeleton, tmp_path / "second", tmp_path / "keep")
    assert len(backwards) == 1
    for index, statistics in first.items():
        for name in statistics:
            assert same(statistics[name], second[index][name])
        files = (block_file(tmp_path / folder, index).read_bytes() for folder in ("first", "second"))
        assert len(set(files)) == 1


CHANGES: dict[str, Callable[[Skeleton], dict[str, Any]]] = {
    "tokens": lambda skeleton: {"tokens": token_ids(1)},
    "seed": lambda skeleton: {"seed": 1},
    "needs": lambda skeleton: {"needs": needs_of(skeleton, frozenset({"squared_gradient"}))},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_inputs_are_computed_anew(
    skeleton: Skeleton, tmp_path: Path, backwards: list[int], change: str
) -> None:
    moments(skeleton, tmp_path / "first", tmp_path / "keep")
    moments(skeleton, tmp_path / "second", tmp_path / "keep", **CHANGES[change](skeleton))
    assert len(backwards) == 2


def test_another_model_is_computed_anew(
    skeleton: Skeleton, tiny_model: Callable[..., Path], tmp_path: Path, backwards: list[int]
) -> None:
    moments(skeleton, tmp_path / "first", tmp_path / "keep")
    other = open_skeleton(open_source(tiny_model("llama", rms_norm_eps=1e-3)))
    moments(other, tmp_path / "second", tmp_path / "keep")
    assert len(backwards) == 2


def test_an_unfinished_call_leaves_nothing_to_take_over(skeleton: Skeleton, tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="stop"),
        gradient_moments(
            skeleton,
            token_ids(),
            needs_of(skeleton),
            device=torch.device("cpu"),
            seed=0,
            folder=tmp_path,
            keep=tmp_path / "keep",
        ) as blocks,
    ):
        next(blocks)
        raise RuntimeError("stop")
    assert not (tmp_path / "keep").exists()
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


class Killed(BaseException):
    """What ends a process at once; nothing is tidied up after it but what a context always does."""


def writes(monkeypatch: pytest.MonkeyPatch, fatal: int) -> list[str]:
    """Let the file that is written as number ``fatal`` be the last thing that happens; the names of those before."""
    names: list[str] = []
    save = gradient_store._save

    def counted(tensors: Any, path: Path, *rest: Any) -> None:
        if len(names) == fatal:
            raise Killed
        names.append(path.name)
        save(tensors, path, *rest)

    monkeypatch.setattr(gradient_store, "_save", counted)
    return names


def test_an_interrupted_call_is_gone_on_with_to_the_same_bytes(
    skeleton: Skeleton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = moments(skeleton, tmp_path / "whole")
    order = ["resume.safetensors", "1.safetensors", "resume.safetensors", "0.safetensors"]
    for fatal in range(len(order)):
        folder = tmp_path / str(fatal)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            writes(patch, fatal)
            moments(skeleton, folder)
        with monkeypatch.context() as patch:
            again = writes(patch, 100)
            resumed = moments(skeleton, folder)
            # From the block whose output gradients were saved last; the block itself counts once its file is there.
            assert again == order[2 * max(0, (fatal - 1) // 2) :]
        for index in (0, 1):
            paths = (block_file(place, index) for place in (folder, tmp_path / "whole"))
            assert len({path.read_bytes() for path in paths}) == 1
            assert all(same(resumed[index][name], whole[index][name]) for name in whole[index])
        assert not (folder / "resume.safetensors").exists()


def test_a_finished_pass_is_not_made_again(skeleton: Skeleton, tmp_path: Path, backwards: list[int]) -> None:
    whole = moments(skeleton, tmp_path)
    again = moments(skeleton, tmp_path)
    assert len(backwards) == 1
    assert all(same(again[i][name], whole[i][name]) for i in whole for name in whole[i])


@pytest.mark.parametrize("change", CHANGES)
def test_files_of_other_inputs_are_not_gone_on_with(
    skeleton: Skeleton, tmp_path: Path, backwards: list[int], change: str
) -> None:
    moments(skeleton, tmp_path / "one")
    changed = CHANGES[change](skeleton)
    again = moments(skeleton, tmp_path / "one", **changed)
    assert len(backwards) == 2
    fresh = moments(skeleton, tmp_path / "other", **changed)
    for index in fresh:
        names = {place: load_file(block_file(tmp_path / place, index)) for place in ("one", "other")}
        assert names["one"].keys() == names["other"].keys()
        assert all(torch.equal(value, names["one"][key]) for key, value in names["other"].items())
    assert again.keys() == fresh.keys()


def test_the_block_is_in_memory_meanwhile(skeleton: Skeleton, tmp_path: Path) -> None:
    for folder in ("computed", "taken over"):
        (tmp_path / folder).mkdir()
        with gradient_moments(
            skeleton,
            token_ids(),
            needs_of(skeleton),
            device=torch.device("cpu"),
            seed=0,
            folder=tmp_path / folder,
            keep=tmp_path / "keep",
        ) as blocks:
            for index, _ in blocks:
                for block in (0, 1):
                    on_meta = [p.is_meta for p in skeleton.block_module(block).parameters()]
                    assert not any(on_meta) if block == index else all(on_meta)


def test_the_texts_labels_give_the_observed_fisher_matrix(
    skeleton: Skeleton, tmp_path: Path, backwards: list[int]
) -> None:
    kept = tmp_path / "kept"
    drawn = moments(skeleton, tmp_path / "one", kept)
    observed = moments(skeleton, tmp_path / "two", kept, labels="data")
    assert len(backwards) == 2  # neither takes over the other's
    assert not any(
        same(one, other) for one, other in zip(drawn[0].values(), observed[0].values(), strict=True)
    )
    # With the text's labels nothing is drawn: the seed has no say.
    again = moments(skeleton, tmp_path / "three", labels="data", seed=7)
    assert all(same(one, other) for one, other in zip(again[0].values(), observed[0].values(), strict=True))


def test_moments_of_a_pass_in_bf16_are_those_in_fp32_but_for_its_rounding(
    skeleton: Skeleton, tmp_path: Path
) -> None:
    needs = needs_of(skeleton, frozenset({"output_gradients", "gram"}))
    exact = moments(skeleton, tmp_path / "exact", needs=needs)
    rounded = moments(skeleton, tmp_path / "rounded", needs=needs, dtype=torch.bfloat16)
    for index, by_name in exact.items():
        for name, there in by_name.items():
            for moment in ("output_gradient_gram", "dense_gram"):
                wanted, found = getattr(there, moment), getattr(rounded[index][name], moment)
                assert found.dtype == torch.float32
                assert torch.equal(found, found.T)
                assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.03


def test_kept_moments_are_not_taken_over_in_another_dtype(
    skeleton: Skeleton, tmp_path: Path, backwards: list[int]
) -> None:
    moments(skeleton, tmp_path / "one", keep=tmp_path / "kept")
    moments(skeleton, tmp_path / "two", keep=tmp_path / "kept", dtype=torch.bfloat16)
    assert len(backwards) == 2
