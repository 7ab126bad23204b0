"""The packed embedding, by itself and tied to a head."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from compress_kernels.layouts import NormalFloat4, PackedInteger, SparseNM
from compress_kernels.modules import PackedEmbedding, PackedLinear
from torch import nn

SHAPE = (33, 96)
IDS = torch.tensor([[0, 32, 5], [5, 1, 1]])


def embedding(dtype: torch.dtype | None = None) -> PackedEmbedding:
    torch.manual_seed(0)
    layout = PackedInteger(4, 32)
    tensors = layout.encode(torch.randint(0, 16, SHAPE), torch.rand(33, 3) * 0.1)
    return PackedEmbedding(layout, SHAPE, tensors, dtype=dtype, padding_idx=1)


class Model(nn.Module):
    """An embedding and a head that share a weight."""

    def __init__(self, holder: str) -> None:
        super().__init__()
        made = embedding(torch.float32)
        head = PackedLinear(made.layout, SHAPE, made.tensors())
        if holder == "embedding":
            head.tie(made)
        else:
            made.tie(head)
        self.embedding, self.head = made, head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.embedding(ids))
        return y


def test_like_the_dense_embedding() -> None:
    packed = embedding()
    assert packed(IDS).dtype == torch.bfloat16
    assert packed.float()(IDS).dtype == torch.float32
    assert torch.equal(packed(IDS), nn.functional.embedding(IDS, packed.dequantize(torch.float32)))
    assert isinstance(packed, nn.Embedding)
    assert (packed.num_embeddings, packed.embedding_dim, packed.padding_idx) == (33, 96, 1)
    assert torch.equal(packed.weight.clone(), packed.dequantize(torch.float32))
    with pytest.raises(IndexError):
        packed(torch.tensor([33]))


def test_state_dict_has_the_names_on_disk() -> None:
    packed = embedding()
    assert set(packed.state_dict()) == {"weight_packed", "weight_scale", "weight_shape"}
    empty = PackedEmbedding(packed.layout, SHAPE, device="meta")
    empty.load_state_dict(packed.state_dict(), assign=True)
    assert torch.equal(empty(IDS), packed(IDS))


@pytest.mark.parametrize("holder", ["embedding", "head"])
def test_tied_modules_hold_one_weight(holder: str) -> None:
    model = Model(holder)
    untied = Model(holder)
    dense = model.embedding.dequantize(torch.float32)
    expected = nn.functional.embedding(IDS, dense) @ dense.T
    torch.testing.assert_close(model(IDS), expected)
    assert set(model.state_dict()) == {
        f"{holder}.{name}" for name in ("weight_packed", "weight_scale", "weight_shape")
    }
    assert model.embedding.prepare() is model.head.prepare()
    assert torch.equal(model.head.float().weight.clone(), model.embedding.weight.clone())
    state = model.state_dict()
    untied.load_state_dict({**state, f"{holder}.weight_scale": torch.zeros(33, 3)})
    assert not untied(IDS).any()
    untied.load_state_dict(state)
    torch.testing.assert_close(untied(IDS), expected)


@pytest.mark.parametrize("holder", ["embedding", "head"])
def test_tied_modules_survive_copies_and_casts(holder: str) -> None:
    model = Model(holder)
    expected = model(IDS)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 (our own)
        assert again.embedding.prepare() is again.head.prepare()
        assert again.embedding.prepare() is not model.head.prepare()
        torch.testing.assert_close(again(IDS), expected)
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half(IDS).dtype == torch.bfloat16
    torch.testing.assert_close(half(IDS).float(), expected, rtol=0.05, atol=0.05)


def test_a_released_tensor_comes_back_for_both() -> None:
    torch.manual_seed(0)
    layout = SparseNM()
    chosen = torch.rand(33, 24, 4).argsort(-1)[..., :2]
    mask = torch.zeros(33, 24, 4, dtype=torch.bool).scatter_(2, chosen, True).view(SHAPE)
    tensors = layout.encode(torch.randn(SHAPE), mask)
    head, table = (make(layout, SHAPE, tensors) for make in (PackedLinear, PackedEmbedding))
    table.tie(head)
    rows = table(IDS)
    assert torch.equal(rows, layout.decode(tensors, SHAPE, torch.bfloat16)[IDS])
    for name, tensor in table.tensors().items():
        assert torch.equal(tensor, tensors[name])
    head.half()
    assert torch.equal(table(IDS), rows)


def test_what_cannot_be_tied() -> None:
    first, second = embedding(), embedding()
    other = PackedEmbedding(NormalFloat4(32), SHAPE, device="meta")
    with pytest.raises(ValueError, match="cannot be tied"):
        first.tie(other)
    with pytest.raises(ValueError, match="itself"):
        first.tie(first)
    first.tie(second)
    with pytest.raises(ValueError, match="itself"):
        embedding().tie(first)
