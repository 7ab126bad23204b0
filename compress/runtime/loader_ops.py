"""How transformers' loader is told where the tensors of a native checkpoint belong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from compress.formats.packed_weight import PackedWeight
from compress.models.conversion import Piece
from compress.models.views import WeightView

_TICKET = re.compile(r"packed:\d+:")
UNUSED = r"packed:\d+:$"
"""What the names look like of tensors that only stand in for a packed one."""


class Tickets:
    """Names that none of a model's own renamings and conversions can mistake for one of theirs."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def take(self, disk: str) -> str:
        """The ticket of a tensor on disk."""
        return self.names.setdefault(disk, f"packed:{len(self.names)}:")


class Rename(WeightRenaming):
    """Renames by a table of whole names, or of the tickets in them, and leaves every other name alone."""

    __slots__ = ("_table", "_within")

    def __init__(self, table: Mapping[str, str], *, within: bool = False) -> None:
        super().__init__(["packed:"], ["packed:"])
        self._table, self._within = dict(table), within

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """As the base class; no pattern is ever reported, for it is none."""
        if self._within:
            ticket = _TICKET.search(source_key)
            # A model's own renaming may have put a prefix before it.
            source_key = ticket.group(0) if ticket else source_key
        return self._table.get(source_key, source_key), None


class Assemble(ConversionOps):
    """Puts a parameter together from packed weights and what is on disk in the clear."""

    def __init__(
        self,
        quantizer: Any,
        views: Sequence[tuple[WeightView, PackedWeight]],
        pieces: Sequence[Piece],
        tickets: Tickets,
    ) -> None:
        self.hf_quantizer = quantizer  # its presence tells transformers to leave the tensors' dtypes alone
        self._views, self._pieces, self._tickets = tuple(views), tuple(pieces), tickets

    def __deepcopy__(self, memo: dict[int, Any]) -> Assemble:
        # transformers copies a converter for every tensor that it collects.
        return self

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        *,
        full_layer_name: str,
        model: Any,
        **unused: Any,
    ) -> dict[str, Tensor]:
        """Ticket → ``[tensor]`` to parameter → tensor, in the dtype that the model gives it."""
        found = {
            ticket: value[0] if isinstance(value, list) else value for ticket, value in input_dict.items()
        }
        like = model.get_parameter(full_layer_name)
        result = torch.empty(like.shape, dtype=like.dtype, device=next(iter(found.values())).device)
        for piece in self._pieces:
            piece.place(result).copy_(piece.of_disk(found[self._tickets.take(piece.disk)]))
        for view, weight in self._views:
            tensors = {suffix: found[self._tickets.take(name)] for suffix, name in weight.names.items()}
            view.put(result, weight.decoded(tensors, like.dtype))
        return {full_layer_name: result}


class Pick(ConversionOps):
    """Takes one tensor and drops what stands in for it."""

    def __init__(self, quantizer: Any, ticket: str) -> None:
        self.hf_quantizer = quantizer
        self._ticket = ticket

    def __deepcopy__(self, memo: dict[int, Any]) -> Pick:
        return self

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        *,
        full_layer_name: str,
        **unused: Any,
    ) -> dict[str, Tensor]:
        """Ticket → ``[tensor]`` to name → tensor."""
        value = input_dict[self._ticket]
        return {full_layer_name: value[0] if isinstance(value, list) else value}


def converter(parameter: str, tickets: Sequence[str], operation: ConversionOps) -> WeightConverter:
    """What transformers runs once it has read the tensors behind ``tickets``."""
    return WeightConverter(list(tickets), [parameter], [operation])
