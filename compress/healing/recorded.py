"""Work on a GPU that is recorded once as a CUDA graph and then replayed: without Python, and without a launch for every kernel.

A step of a small model is thousands of kernels of some microseconds each, which a processor cannot launch as fast as the GPU
runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Recorded:
    """A function of tensors that is replayed from its third call with tensors of the same shapes on.

    The first call runs it as it is: libraries load, kernels are compiled, what is kept is computed. The second records it.

    The function has to work on one GPU, in the same way in every call, on tensors that stay where they are; it reads no number
    on the host. Tensors that it is given are copied to where it was recorded.

    Args:
        function: returns one tensor, whose values are copied out, or nothing.
        pool: memory that several recordings share, as :func:`torch.cuda.graph_pool_handle` gives it; they are not replayed at
            the same time.
    """

    def __init__(self, function: Callable[..., Tensor | None], pool: Any) -> None:
        self.function, self.pool = function, pool
        self._results: dict[Any, Tensor | None] = {}
        self.refused = ""
        """Why the GPU did not record it; every call runs it as it is then."""
        self._graphs: dict[Any, tuple[Any, tuple[Tensor, ...]]] = {}

    def __call__(self, *given: Tensor) -> Tensor | None:
        """What the function returns; the next call with tensors of the same shapes overwrites it."""
        key = tuple((tuple(one.shape), one.dtype) for one in given)
        if key not in self._results:
            found = self.function(*given)
            self._results[key] = None if found is None else found.clone()
            return self._results[key]
        if self.refused:
            return self.function(*given)
        if key not in self._graphs:
            try:
                self._graphs[key] = self._record(given, self._results[key])
            except RuntimeError as error:
                self.refused = str(error).partition("\n")[0]
                return self.function(*given)
        graph, held = self._graphs[key]
        for place, one in zip(held, given, strict=True):
            place.copy_(one)
        graph.replay()
        return self._results[key]

    def _record(self, given: tuple[Tensor, ...], result: Tensor | None) -> tuple[Any, tuple[Tensor, ...]]:
        held = tuple(one.clone() for one in given)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            found = self.function(*held)
            if result is not None and found is not None:
                result.copy_(found)
        return graph, held
