"""Edits of a source's tensors: applied in order when they are read, in place in the part that a parameter is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from compress.checkpoint.source import Source, open_source
from compress.models.conversion import Piece
from compress.transforms.orthogonal import Dense, Orthogonal
from compress.transforms.rotated_source import Divide, Fill, Placed, Rotate, Scale, rotated_source

SWAP = Orthogonal(2, (Dense(torch.tensor([[0.0, 1.0], [1.0, 0.0]])),), "swap")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _source(tiny_model: Callable[..., Path]) -> Source:
    return open_source(tiny_model("llama_tied"))


def test_edits_are_made_in_order_and_rounded_once(tiny_model: Callable[..., Path]) -> None:
    base = _source(tiny_model)
    vector = torch.arange(1.0, 65.0)
    edits = {EMBEDDING: [Scale(1, vector), Rotate(1, 0, 64, SWAP)]}
    source = rotated_source(base, edits, copies={}, record={"seed": 0})
    before = base.read(EMBEDDING).float()
    expected = (before * vector).view(-1, 32, 2).flip(-1).reshape(before.shape).to(torch.bfloat16)
    assert torch.equal(source.read(EMBEDDING), expected)
    assert torch.equal(base.read(EMBEDDING).float(), before)  # the source is not touched
    assert bytes(source.raw_bytes(EMBEDDING)) == expected.view(torch.uint8).numpy().tobytes()
    other = "model.norm.weight"
    assert bytes(source.raw_bytes(other)) == bytes(base.raw_bytes(other))


def test_a_rotation_of_some_rows_leaves_the_others() -> None:
    tensor = torch.randn(6, 3)
    edited = tensor.clone()
    Rotate(0, 2, 6, SWAP).apply(edited)
    assert torch.equal(edited, tensor[[0, 1, 3, 2, 5, 4]])


def test_vectors_are_filled_and_divided() -> None:
    vector = torch.tensor([2.0, 0.0, 6.0])
    Divide(torch.tensor([2.0, 0.0, 3.0])).apply(vector)
    assert vector.tolist() == [1.0, 0.0, 2.0]
    Fill(1.0).apply(vector)
    assert vector.tolist() == [1.0, 1.0, 1.0]


def test_an_edit_keeps_to_its_part_of_a_tensor_that_lies_turned_on_disk() -> None:
    # parameter [2, 4] = rows 3 and 4 of the disk tensor's second dimension, transposed
    piece = Piece("t", ((0, 2), (0, 4)), ((0, 4, 1), (3, 5, 1)), (1, 0), whole=False)
    disk = torch.randn(4, 6)
    edited = disk.clone()
    Placed(piece, Rotate(1, 0, 4, SWAP)).apply(edited)
    expected = disk.clone()
    expected[:, 3:5] = disk[[1, 0, 3, 2], 3:5]
    assert torch.equal(edited, expected)


def test_a_copy_has_edits_of_its_own_and_unties(tiny_model: Callable[..., Path]) -> None:
    base = _source(tiny_model)
    source = rotated_source(
        base, {HEAD: [Scale(1, torch.full((64,), 2.0))]}, copies={HEAD: EMBEDDING}, record={}
    )
    assert torch.equal(source.read(HEAD), 2 * base.read(EMBEDDING))
    assert torch.equal(source.read(EMBEDDING), base.read(EMBEDDING))
    assert source.config["tie_word_embeddings"] is False
    assert source.changes == {"tie_word_embeddings": False}
    assert source.headers[HEAD].nbytes == base.headers[EMBEDDING].nbytes


def test_what_is_not_known_any_more_is_zero_and_has_no_reference(tiny_model: Callable[..., Path]) -> None:
    base = _source(tiny_model)
    source = rotated_source(
        base, {EMBEDDING: [Fill(1.0)]}, copies={}, record={}, unread=frozenset({EMBEDDING})
    )
    assert not bool(source.read(EMBEDDING).any())
    assert source.without_reference == {EMBEDDING}
    assert base.without_reference == frozenset()


def test_what_is_read_of_the_files(tiny_model: Callable[..., Path]) -> None:
    base, norm = _source(tiny_model), "model.norm.weight"
    source = rotated_source(
        base, {norm: [Fill(1.0)]}, copies={HEAD: EMBEDDING}, record={}, unread=frozenset({norm})
    )
    assert source.on_disk(HEAD) == source.on_disk(EMBEDDING) == (base.headers[EMBEDDING],)
    assert source.on_disk(norm) == ()
