"""A checkpoint seen in part: rows and columns left out, tensors taken from elsewhere, the files untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.checkpoint.sliced_source import Cut, cut_source
from compress.checkpoint.source import Source, open_source

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
KEPT = torch.tensor([0, 3, 4, 90])


@pytest.fixture
def source(tiny_model: Callable[..., Path]) -> Source:
    return open_source(tiny_model("llama"))


@pytest.fixture
def tensors(source: Source) -> dict[str, torch.Tensor]:
    return load_file(source.path / "model.safetensors")


def test_rows_and_columns_that_are_kept(source: Source, tensors: dict[str, torch.Tensor]) -> None:
    cut = cut_source(source, {UP: (Cut(0, KEPT),), DOWN: (Cut(1, KEPT),)}, config={}, record={}, refitted={})
    assert torch.equal(cut.read(UP), tensors[UP][KEPT])
    assert torch.equal(cut.read(DOWN), tensors[DOWN][:, KEPT])
    assert cut.headers[UP].shape == (4, 64)
    assert cut.headers[DOWN].nbytes == 2 * 64 * 4
    assert (
        bytes(cut.raw_bytes(DOWN)) == tensors[DOWN][:, KEPT].contiguous().view(torch.uint8).numpy().tobytes()
    )


def test_several_cuts_of_one_tensor(source: Source, tensors: dict[str, torch.Tensor]) -> None:
    rows = torch.tensor([1, 2])
    cut = cut_source(source, {UP: (Cut(0, KEPT), Cut(1, rows))}, config={}, record={}, refitted={})
    assert torch.equal(cut.read(UP), tensors[UP][KEPT][:, rows])
    assert cut.headers[UP].shape == (4, 2)


def test_all_else_is_as_it_was(source: Source, tensors: dict[str, torch.Tensor]) -> None:
    cut = cut_source(source, {UP: (Cut(0, KEPT),)}, config={}, record={}, refitted={})
    for name in source.headers.keys() - {UP}:
        assert torch.equal(cut.read(name), tensors[name])
        assert cut.headers[name] == source.headers[name]
        assert bytes(cut.raw_bytes(name)) == bytes(source.raw_bytes(name))
    assert source.headers[UP].shape == (128, 64)


def test_the_configuration_and_the_record(source: Source) -> None:
    changes, record = {"intermediate_size": 4}, {"kept": "f"}
    cut = cut_source(source, {UP: (Cut(0, KEPT),)}, config=changes, record=record, refitted={})
    assert cut.config == {**source.config, **changes}
    assert cut.changes == changes
    assert cut.width_pruned == record
    assert source.config["intermediate_size"] == 128


def test_refitted_tensors_come_from_their_file(source: Source, tmp_path: Path) -> None:
    fitted = torch.randn(64, 4).to(torch.bfloat16)
    save_file({DOWN: fitted}, tmp_path / "0.safetensors")
    cuts = {UP: (Cut(0, KEPT),), DOWN: (Cut(1, KEPT),)}
    cut = cut_source(source, cuts, config={}, record={}, refitted={DOWN: tmp_path / "0.safetensors"})
    assert torch.equal(cut.read(DOWN), fitted)
    assert bytes(cut.raw_bytes(DOWN)) == fitted.view(torch.uint8).numpy().tobytes()
    assert cut.unread == frozenset()


def test_refitted_tensors_that_are_gone_are_zeros_of_the_right_shape(source: Source) -> None:
    cut = cut_source(source, {DOWN: (Cut(1, KEPT),)}, config={}, record={}, refitted={DOWN: None})
    assert cut.unread == {DOWN}
    assert cut.read(DOWN).shape == (64, 4)
    assert not cut.read(DOWN).any()


def test_what_is_read_of_the_files(source: Source, tmp_path: Path) -> None:
    save_file({DOWN: torch.ones(64, 4)}, tmp_path / "refitted.safetensors")
    norm = "model.norm.weight"
    cuts = {UP: (Cut(0, KEPT),), DOWN: (Cut(1, KEPT),), norm: (Cut(0, KEPT),)}
    cut = cut_source(
        source, cuts, config={}, record={}, refitted={DOWN: tmp_path / "refitted.safetensors", norm: None}
    )
    assert cut.on_disk(UP) == (source.headers[UP],)
    assert [(info.file.name, info.nbytes) for info in cut.on_disk(DOWN)] == [
        ("refitted.safetensors", 4 * 64 * 4)
    ]
    assert cut.on_disk(norm) == ()
