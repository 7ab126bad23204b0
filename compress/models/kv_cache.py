"""The key-value cache of a model: which modules store keys and values, and a cache that changes them as they are stored."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from compress.errors import UserError
from compress.models.skeleton import Skeleton

Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Keys and values ``[batch, heads, tokens, width]``, keys after their position is rotated in → what is stored."""

_ARGUMENTS = ("past_key_values", "past_key_value", "layer_past")
"""Names under which attention modules take their cache."""


@dataclass(frozen=True)
class CachedAttention:
    """An attention module that stores keys and values.

    Attributes:
        block: the index of its block.
        module: its name in the model.
        disk: its name on disk, which its scales are stored under.
        heads: how many heads of keys it has.
        named_attention: whether compressed-tensors' loaders take it for attention, by its class and its projections.
    """

    block: int
    module: str
    disk: str
    heads: int
    named_attention: bool


def cached_attention(skeleton: Skeleton, index: int) -> tuple[CachedAttention, ...]:
    """The attention modules of one block that store keys and values; a block may have none (a recurrent one)."""
    prefix, block = skeleton.blocks[index], skeleton.block_module(index)
    taking = [name for name, module in block.named_modules() if name and cache_argument(module) is not None]
    innermost = [name for name in taking if not any(other.startswith(f"{name}.") for other in taking)]
    return tuple(
        CachedAttention(
            index,
            f"{prefix}.{name}",
            _on_disk(skeleton, index, f"{prefix}.{name}"),
            _key_heads(skeleton),
            _named_attention(block.get_submodule(name)),
        )
        for name in innermost
    )


def check_cache(skeleton: Skeleton) -> None:
    """Refuse a model whose cache does not hold keys and values by head.

    Raises:
        UserError: it stores something else (latent attention), or no block of it stores any.
    """
    config = skeleton.model.config.get_text_config()
    if getattr(config, "kv_lora_rank", None):
        raise UserError(
            "kv_cache: this model stores latent vectors in the place of keys and values (kv_lora_rank in config.json), which "
            "no server stores in 8 bits by these scales; leave 'kv_cache' out"
        )
    if not any(cached_attention(skeleton, index) for index in range(len(skeleton.blocks))):
        raise UserError("kv_cache: no block of this model stores keys and values; leave 'kv_cache' out")


def cache_argument(module: nn.Module) -> str | None:
    """The name of the argument by which a module's forward takes its cache; None where it takes none."""
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return None
    return next((name for name in _ARGUMENTS if name in parameters), None)


def store_through(module: nn.Module, store: Store) -> RemovableHandle:
    """Let an attention module store, and attend to, what ``store`` makes of its keys and values; with or without a cache.

    Returns:
        What undoes it.
    """
    name = cache_argument(module)
    if name is None:
        raise ValueError(f"{type(module).__name__} takes no key-value cache")
    signature = inspect.signature(module.forward)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = signature.bind_partial(*args, **kwargs)
        bound.arguments[name] = _StoringCache(bound.arguments.get(name), store)
        return bound.args, bound.kwargs

    return module.register_forward_pre_hook(hook, with_kwargs=True)


class _StoringCache:
    """A cache of transformers seen through ``store``; in the place of none, it keeps nothing."""

    def __init__(self, cache: Any, store: Store) -> None:
        self._cache, self._store = cache, store

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Store keys and values; returns all that are to be attended to."""
        keys, values = self._store(keys, values)
        return (keys, values) if self._cache is None else self._cache.update(keys, values, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(DynamicCache() if self._cache is None else self._cache, name)


def _key_heads(skeleton: Skeleton) -> int:
    config = skeleton.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        raise UserError(
            "kv_cache: config.json does not say how many heads of keys a layer has; leave 'kv_cache' out"
        )
    return heads


def _on_disk(skeleton: Skeleton, index: int, module: str) -> str:
    """The name on disk of a module, by what its weights are called there."""
    for view in skeleton.block_views(index):
        inner = view.module.removeprefix(module)
        if inner != view.module and view.name.endswith(inner):
            return view.name.removesuffix(inner)
    return module


def _named_attention(module: nn.Module) -> bool:
    projections = ("k_proj", "v_proj", "qkv_proj", "kv_b_proj")
    return "attention" in type(module).__name__.lower() and any(hasattr(module, name) for name in projections)
