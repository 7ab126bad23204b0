"""How a tensor differs between a Hugging Face checkpoint and a GGUF file: an order of rows, a constant added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

RowOrder = Literal["as_is", "rope", "qkv_by_head", "qkv_by_group"]


@dataclass(frozen=True)
class Edit:
    """An invertible change of a tensor.

    Attributes:
        rows: the order of the first dimension. ``rope``: the two halves of each head are interleaved, ``counts`` = heads;
            ``qkv_by_head``: q, k and v of a head lie together on the Hugging Face side and apart in GGUF, ``counts`` =
            heads; ``qkv_by_group``: the queries of a group lie with their key and value, ``counts`` = groups, queries of
            each.
        counts: numbers that the order depends on.
        add: what is added to every element.
    """

    rows: RowOrder = "as_is"
    counts: tuple[int, ...] = ()
    add: float = 0.0

    def order(self, size: int) -> Tensor | None:
        """Which row of the Hugging Face tensor each row of the GGUF tensor is, int64 ``[size]``; ``None``: as they are."""
        if self.rows == "as_is":
            return None
        index = torch.arange(size)
        if self.rows == "rope":
            return index.view(self.counts[0], 2, -1).transpose(1, 2).reshape(-1)
        if self.rows == "qkv_by_head":
            return index.view(self.counts[0], 3, -1).transpose(0, 1).reshape(-1)
        groups, queries = self.counts
        parts = index.view(groups, queries + 2, -1).split([queries, 1, 1], dim=1)
        return torch.cat([part.reshape(-1) for part in parts])

    def to_gguf(self, tensor: Tensor) -> Tensor:
        """The tensor as GGUF has it; packed rows may stand for the rows where nothing is added."""
        order = self.order(len(tensor))
        tensor = tensor if order is None else tensor[order.to(tensor.device)]
        return tensor + self.add if self.add else tensor

    def from_gguf(self, tensor: Tensor) -> Tensor:
        """Invert :meth:`to_gguf`."""
        order = self.order(len(tensor))
        if order is not None:
            tensor = tensor[torch.argsort(order).to(tensor.device)]
        return tensor - self.add if self.add else tensor

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back."""
        return {"rows": self.rows, "counts": list(self.counts), "add": self.add}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Edit:
        """The edit that :meth:`to_json` wrote."""
        return cls(data["rows"], tuple(data["counts"]), data["add"])
