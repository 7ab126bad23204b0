"""Caches of a fixed capacity hold what a growing one holds."""

from __future__ import annotations

import pytest
import torch

from compress.runtime.decoding.cache import POSITION, BufferedCache, traced_cache


def _states(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(1, 2, length, 4), torch.randn(1, 2, length, 4)


def test_what_is_appended_comes_back() -> None:
    torch.manual_seed(0)
    cache = BufferedCache(1, 8)
    first, second = _states(5), _states(1)
    cache.update(*first, 0)
    keys, values = cache.update(*second, 0)
    torch.testing.assert_close(keys, torch.cat([first[0], second[0]], 2), rtol=0, atol=0)
    torch.testing.assert_close(values, torch.cat([first[1], second[1]], 2), rtol=0, atol=0)
    assert cache.get_seq_length() == cache.length == 6
    assert [tuple(tensor.shape) for tensor in cache.tensors()] == [(1, 2, 8, 4)] * 2
    with pytest.raises(IndexError, match="holds 8"):
        cache.update(*_states(3), 0)


def test_a_layer_that_was_never_written_has_no_tensors() -> None:
    cache = BufferedCache(2, 8)
    cache.update(*_states(3), 0)
    with pytest.raises(ValueError, match="never written"):
        cache.tensors()


def test_the_traced_view_writes_at_its_position() -> None:
    torch.manual_seed(0)
    cache = BufferedCache(1, 8)
    cache.update(*_states(5), 0)
    key, value = _states(1)
    position = torch.tensor([5])
    keys, _ = traced_cache(cache.tensors(), position).update(key, value, 0)
    assert getattr(keys, POSITION) is position
    torch.testing.assert_close(cache.tensors()[0][:, :, 5:6], key, rtol=0, atol=0)
    torch.testing.assert_close(cache.tensors()[1][:, :, 5:6], value, rtol=0, atol=0)
