"""The stand-in device refuses what a GPU refuses, gives the CPU's values, and counts what passes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

DEVICE = "standin"


def test_values_and_gradients_are_those_of_the_cpu(traffic: Any) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(3, 5), torch.randn(2, 5)
    expected = F.linear(x, weight).relu()
    here = weight.to(DEVICE).requires_grad_()
    y = F.linear(x.to(DEVICE), here).relu()
    assert y.device.type == DEVICE
    assert torch.equal(y.detach().cpu(), expected)
    y.sum().backward()
    assert here.grad is not None
    assert here.grad.device.type == DEVICE


def test_two_devices_in_an_operator_are_refused(traffic: Any) -> None:
    there, here = torch.ones(2, 3, device=DEVICE), torch.ones(2, 3)
    for mixed in (lambda: there + here, lambda: here @ there.T, lambda: torch.cat([here, there])):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    assert (there + torch.tensor(1.0)).device.type == DEVICE  # a number may be anywhere
    assert there[torch.tensor([0])].device.type == DEVICE  # so may an index
    with pytest.raises(RuntimeError, match="same device"):
        here[torch.tensor([0], device=DEVICE)]


def test_new_tensors_and_views_stay_on_the_device(traffic: Any) -> None:
    x = torch.arange(6, device=DEVICE).view(2, 3)
    for made in (
        x.new_zeros(2),
        torch.zeros_like(x),
        torch.tensor([1, 2], device=DEVICE),
        x.T,
        x[1],
        x.float(),
    ):
        assert made.device.type == DEVICE
    x[0, 1] = 7
    assert x.tolist() == [[0, 7, 2], [3, 4, 5]]
    assert x.cpu().device.type == "cpu"


def test_transfers_and_reads_are_counted(traffic: Any) -> None:
    x = torch.ones(4).to(DEVICE)
    assert (traffic.to_device, traffic.to_host, traffic.reads) == (1, 0, 0)
    assert float(x.sum()) == 4
    x.cpu()
    assert (traffic.to_device, traffic.to_host, traffic.reads) == (1, 1, 1)


def test_outside_it_nothing_is_changed(standin: ModuleType) -> None:
    with standin.standin_device():
        pass
    x = torch.ones(2)
    assert type(x + 1) is torch.Tensor
