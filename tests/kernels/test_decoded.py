"""The tensor that stands for a packed layer's weight: cheap to ask about, decoded to be read, never changed."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from compress_kernels.decoded import DecodedWeight
from torch import Tensor

SHAPE = (6, 4)


class Counted:
    """A weight and how often it was decoded."""

    def __init__(self) -> None:
        self.values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
        self.decoded = 0

    def decode(self) -> Tensor:
        self.decoded += 1
        return self.values.clone()

    def weight(self) -> DecodedWeight:
        return DecodedWeight(SHAPE, torch.float32, torch.device("cpu"), self.decode)


def test_what_it_is_costs_nothing() -> None:
    source = Counted()
    weight = source.weight()
    assert weight.shape == SHAPE
    assert weight.dtype == weight.data.dtype == torch.float32
    assert weight.device.type == "cpu"
    assert weight.numel() == 24
    assert not weight.requires_grad
    assert "shape=[6, 4]" in repr(weight)
    assert source.decoded == 0


def test_operators_see_the_decoded_values() -> None:
    source = Counted()
    weight, values = source.weight(), source.values
    assert torch.equal(weight.clone(), values)
    assert torch.equal(weight.T, values.T)
    assert torch.equal(weight[1:3], values[1:3])
    assert torch.equal(torch.cat([weight, weight.data]), torch.cat([values, values]))
    assert torch.equal(weight.to(torch.float64), values.double())
    assert type(weight + 1) is Tensor
    assert torch.equal(torch.tensor(weight.tolist()), values)
    assert weight.numpy(force=True).shape == SHAPE


def test_gradients_pass_through_a_product_with_it() -> None:
    source = Counted()
    x = torch.randn(3, 4, requires_grad=True)
    (found,) = torch.autograd.grad(F.linear(x, source.weight()).square().sum(), x)
    (expected,) = torch.autograd.grad(F.linear(x, source.values).square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_copies_hold_the_values() -> None:
    source = Counted()
    assert torch.equal(copy.deepcopy(source.weight()), source.values)
    file = io.BytesIO()
    torch.save(source.weight(), file)
    file.seek(0)
    assert torch.equal(torch.load(file), source.values)


def test_a_change_that_would_be_lost_is_refused() -> None:
    weight = Counted().weight()
    delta = torch.ones(SHAPE)
    changes = (
        lambda: weight.add_(delta),
        lambda: weight.data.add_(delta),
        lambda: weight.data.copy_(delta),
        lambda: weight.zero_(),
        lambda: torch.nn.init.normal_(weight),
        lambda: torch.add(delta, delta, out=weight),
        lambda: setattr(weight, "data", delta),
        lambda: setattr(weight, "requires_grad", True),
    )
    for change in changes:
        with pytest.raises(TypeError, match="cannot be changed"):
            change()
    delta += weight  # the other way round is a read


def test_a_change_in_place_is_kept_where_somebody_keeps_it() -> None:
    source, kept = Counted(), []
    weight = DecodedWeight(SHAPE, torch.float32, torch.device("cpu"), source.decode, kept.append)
    weight.mul_(2)
    assert torch.equal(kept[0], 2 * source.values)
    with torch.no_grad():
        torch.add(weight, 1, out=weight)  # read and written by one operator
    assert torch.equal(kept[1], source.values + 1)
    with pytest.raises(TypeError, match="cannot be changed"):
        weight.data.mul_(2)
    assert len(kept) == 2
