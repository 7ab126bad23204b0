"""Keys and values of a block while a model is calibrated: their histograms, and their rounding as a server stores them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from compress_kernels.activations import ActivationScheme, fake_quantize
from torch import Tensor

from compress.calibrate.stream import BlockStream
from compress.models.kv_cache import store_through
from compress.models.skeleton import Skeleton
from compress.score.histogram import Histogram


@dataclass(frozen=True)
class CacheRounding:
    """How an attention module stores keys and values.

    Attributes:
        scheme: of both.
        key_scale, value_scale: ``[1]``, or ``[heads, 1, 1]`` where each head has one.
    """

    scheme: ActivationScheme
    key_scale: Tensor
    value_scale: Tensor

    def __call__(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded keys and values ``[batch, heads, tokens, width]``; gradients pass straight through."""
        return self._rounded(keys, self.key_scale), self._rounded(values, self.value_scale)

    def _rounded(self, x: Tensor, scale: Tensor) -> Tensor:
        rounded = fake_quantize(x.detach(), self.scheme, scale.to(x.device))
        return x + (rounded - x.detach()) if x.requires_grad else rounded


@dataclass
class CacheHistograms:
    """Histograms of the keys and values that a module stores, one for each head."""

    keys: list[Histogram] = field(default_factory=list)
    values: list[Histogram] = field(default_factory=list)

    def __call__(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Count keys and values ``[batch, heads, tokens, width]`` and pass them on."""
        for histograms, tensor in ((self.keys, keys), (self.values, values)):
            if not histograms:
                histograms.extend(Histogram() for _ in range(tensor.shape[1]))
            for head, histogram in enumerate(histograms):
                histogram.add(tensor[:, head])
        return keys, values


def observe_cache(
    skeleton: Skeleton, stream: BlockStream, index: int, modules: Sequence[str]
) -> dict[str, CacheHistograms]:
    """Run every batch through the loaded block ``index``; return histograms of what its attention modules store.

    A module that stores nothing, since it reads the keys of another layer, has no histograms.
    """
    seen = {name: CacheHistograms() for name in modules}
    with ExitStack() as stack:
        for name, histograms in seen.items():
            handle = store_through(skeleton.model.get_submodule(name), histograms)
            stack.callback(handle.remove)
        for _ in stream.run(index):
            pass
    return seen
