"""Puts parameters together from what is on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import build_glob_alternation

from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.models.build import FOLLOWS
from compress.models.disk_map import DiskMap
from compress.models.views import WeightView

_PACKED = (torch.uint8, torch.int8, torch.uint32)
"""Dtypes of packed bytes that some forms store under a dense weight's name."""


@dataclass(frozen=True, eq=False)
class Loader:
    """Reads parameters one by one, each into memory of its own; with `mapped`, those that are used as they lie on disk
    stay in the file's private mapping until they are written to. `decode` comes before the disk."""

    source: Source
    model: PreTrainedModel
    disk: DiskMap
    views: Sequence[WeightView]
    decode: Callable[[str], Tensor | None] | None
    device: torch.device
    dtype: torch.dtype
    mapped: bool = False

    def load(self, names: Sequence[str], meta: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Name and real tensor of each of the names that is on disk or supplied."""
        wanted, by_parameter = set(names), self._views_of(names)
        plan = self._dtype_plan()
        for name in names:
            if name not in wanted:
                continue
            dtype = self._dtype_of(name, meta[name].dtype, plan)
            if name in self.disk.conversions:
                made = self.disk.conversions[name].run(self.source, self.model, dtype)
                yield from ((n, tensor.to(self.device)) for n, tensor in made.items() if n in wanted)
                wanted -= set(made)
            elif self.disk.is_known(name) or name in by_parameter:
                yield name, self._assemble(name, meta[name], dtype, by_parameter.get(name, ()))

    def _assemble(self, name: str, meta: Tensor, dtype: torch.dtype, views: Sequence[WeightView]) -> Tensor:
        pieces = self.disk.pieces.get(name, ())
        if self.decode is None and len(pieces) == 1:
            part = pieces[0].of_disk(self.source.read(pieces[0].disk))
            return part.to(device=self.device, dtype=dtype, copy=not self.mapped).contiguous()
        result = torch.empty(meta.shape, device=self.device, dtype=dtype)
        for piece in pieces:
            if self._in_clear(piece.disk):
                piece.place(result).copy_(piece.of_disk(self.source.read(piece.disk)))
        for view in views:
            dense = self._given(view)
            if dense is not None:
                view.put(result, dense)
            elif not view.sources or not self._in_clear(view.sources[0]):
                raise UserError(f"{self.source.path} holds no weight {view.name}, packed or not.")
        return result

    def _in_clear(self, disk: str) -> bool:
        """Whether the disk holds the tensor itself: an empty one, or packed bytes, may stand in a packed weight's place."""
        info = self.source.headers.get(disk)
        return info is not None and info.nbytes > 0 and info.dtype not in _PACKED

    def _given(self, view: WeightView) -> Tensor | None:
        dense = None if self.decode is None else self.decode(view.name)
        own = f"{view.name}.weight"
        if dense is None and own not in view.sources and self._in_clear(own):
            return self.source.read(own)  # a slice of a fused tensor, written on its own
        return dense

    def _views_of(self, names: Sequence[str]) -> dict[str, list[WeightView]]:
        wanted, result = set(names), dict[str, list[WeightView]]()
        for view in self.views:
            if view.parameter in wanted:
                result.setdefault(view.parameter, []).append(view)
        return result

    def _dtype_plan(self) -> Callable[[str], torch.dtype | None]:
        """Which parameters the model keeps in fp32, as transformers decides it."""
        plan = self.model._get_dtype_plan(self.dtype)
        if not plan:
            return lambda name: None
        pattern, by_group, _ = build_glob_alternation(list(plan))

        def planned(name: str) -> torch.dtype | None:
            match = pattern.search(name)
            return None if match is None else plan[by_group[match.lastgroup]]

        return planned

    def _dtype_of(
        self, name: str, built: torch.dtype, plan: Callable[[str], torch.dtype | None]
    ) -> torch.dtype:
        return plan(name) or (self.dtype if built == FOLLOWS else built)
