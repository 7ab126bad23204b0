"""Key-value caches of a fixed capacity: one that a model fills as it runs, and the view of it that is traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

POSITION = "_compress_position"
"""The attribute of the traced keys that holds the position of the query, for the attention that reads them."""


class BufferedLayer(CacheLayerMixin):
    """Keys and values of one attention layer, ``[batch, heads, capacity, width]``, of which the first ``length`` are filled."""

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Reserve the buffers, ``[batch, heads, capacity, head size]`` in the dtype of the first keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            states.new_zeros((*states.shape[:2], self.capacity, states.shape[3]))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append; returns what is filled. Raises ``IndexError`` beyond the capacity."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        end = self.length + key_states.shape[2]
        if end > self.capacity:
            raise IndexError(f"the cache holds {self.capacity} tokens, {end} were given")
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The length of keys and their offset, for the attention mask."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Positions that are filled."""
        return self.length

    def get_max_length(self) -> int:
        """No maximum as far as masks are concerned."""
        return -1

    def reset(self) -> None:
        """Forget what is cached; the buffers stay."""
        self.length = 0


class BufferedCache(Cache):
    """A cache of buffered layers, one for each attention layer of a model."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.buffered = [BufferedLayer(capacity) for _ in range(layers)]
        super().__init__(layers=list(self.buffered))

    @property
    def length(self) -> int:
        """Positions that are filled, the same in every layer."""
        return self.buffered[0].length

    def advance(self) -> None:
        """A token was written by other means."""
        for layer in self.buffered:
            layer.length += 1

    def tensors(self) -> list[Tensor]:
        """Keys and values of every layer in turn.

        Raises:
            ValueError: a layer has none.
        """
        tensors = [tensor for layer in self.buffered for tensor in (layer.keys, layer.values)]
        if any(tensor is None for tensor in tensors):
            raise ValueError("a layer of the cache was never written")
        return [tensor for tensor in tensors if tensor is not None]


class _TracedLayer(BufferedLayer):
    """Writes at a position that is a tensor, and returns the whole buffers."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        super().__init__(keys.shape[2])
        self.keys, self.values, self.position = keys, values, position
        self.is_initialized, self.dtype, self.device = True, keys.dtype, keys.device

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.position, key_states)
        self.values.index_copy_(2, self.position, value_states)
        # Not an argument of the attention functions of transformers, which get the keys.
        setattr(self.keys, POSITION, self.position)
        return self.keys, self.values


def traced_cache(tensors: Sequence[Tensor], position: Tensor) -> Cache:
    """A cache over buffers ``[keys, values, …]`` whose query is at ``position`` (int64 ``[1]``)."""
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    return Cache(layers=[_TracedLayer(keys, values, position) for keys, values in pairs])
