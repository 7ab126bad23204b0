"""Devices and dtypes by name: what they mean here, and wrong names in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress.errors import UserError
from compress.system import device as module
from compress.system.device import resolve_device, resolve_dtype, wanted_dtype


@pytest.mark.parametrize(("gpu", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_where_there_is_one(
    gpu: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert resolve_device("auto") == torch.device(expected)
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no device 'abacus'"):
        resolve_device("abacus")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="finds no GPU"):
        resolve_device("cuda:1")


@pytest.mark.parametrize(
    ("name", "own", "device", "expected"),
    [
        ("auto", torch.bfloat16, "cpu", torch.bfloat16),
        ("auto", torch.float32, "cuda", torch.float32),
        ("auto", torch.float16, "cuda", torch.float16),
        ("auto", torch.float16, "cpu", torch.bfloat16),
        ("fp16", torch.float32, "cpu", torch.float16),
        ("fp32", torch.float16, "cpu", torch.float32),
        ("bf16", torch.float32, "cuda", torch.bfloat16),
    ],
)
def test_dtypes(name: str, own: torch.dtype, device: str, expected: torch.dtype) -> None:
    assert resolve_dtype(name, own, device) == expected


def test_an_unknown_dtype() -> None:
    with pytest.raises(UserError, match="there is no dtype 'int8': take auto, bf16, fp16, fp32"):
        resolve_dtype("int8", torch.float32, "cpu")


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("auto", {"dtype": "bfloat16"}, torch.bfloat16),
        ("auto", {"torch_dtype": "float32"}, torch.float32),
        ("auto", {"torch_dtype": "torch.float16"}, torch.bfloat16),
        ("auto", {"text_config": {"dtype": "bfloat16"}}, torch.bfloat16),
        ("auto", {"dtype": "float32", "text_config": {"dtype": "bfloat16"}}, torch.float32),
        ("auto", {}, None),
        ("auto", {"dtype": "of its own"}, None),
        ("auto", {"dtype": "float8_e4m3fn"}, None),
        ("auto", {"dtype": {"weights": "bfloat16"}}, None),
        ("auto", {"dtype": "__all__"}, None),
        ("auto", {"text_config": None}, None),
        ("fp16", {}, torch.float16),
        ("fp32", {"dtype": "bfloat16"}, torch.float32),
    ],
)
def test_dtype_of_a_raw_configuration(
    name: str, config: dict[str, Any], expected: torch.dtype | None
) -> None:
    assert wanted_dtype(name, config, "cpu") == expected


def test_every_rank_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [module.device_of_rank("auto", here).index for here in range(4)] == [0, 1, 0, 1]
    assert module.device_of_rank("cuda:1", 0) == torch.device("cuda")  # as resolve_device says
