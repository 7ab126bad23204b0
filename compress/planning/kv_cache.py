"""The key-value cache of a planned checkpoint: its scheme, and the attention modules whose keys and values are scaled."""

from __future__ import annotations

from compress.formats.base import KVCacheScheme
from compress.models.kv_cache import cached_attention, check_cache
from compress.models.skeleton import Skeleton
from compress.planning.methods import observer_of
from compress.recipe.recipe import Recipe


def kv_cache_of(skeleton: Skeleton, recipe: Recipe) -> KVCacheScheme | None:
    """What the recipe's ``kv_cache`` makes of the model; None where it has none.

    Raises:
        UserError: the model stores no keys and values by head.
    """
    if recipe.kv_cache is None:
        return None
    check_cache(skeleton)
    observer_of(recipe.kv_cache.observer)  # a name or an option that does not exist is told before any work
    modules = (one for index in range(len(skeleton.blocks)) for one in cached_attention(skeleton, index))
    return KVCacheScheme(recipe.kv_cache.scheme(), tuple(modules))
