"""A packed weight as a checkpoint stores it: layout, shape, and the names of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from compress_kernels.activations import ActivationScheme
from compress_kernels.layouts import Layout, check
from torch import Tensor

from compress.checkpoint.source import Source
from compress.errors import UserError


@dataclass(frozen=True)
class PackedWeight:
    """A weight as a checkpoint stores it.

    Attributes:
        layout: how it is packed.
        shape: ``[out, in]``.
        names: suffix → name of each tensor, calibrated ones of its inputs included.
        activations: how its inputs are rounded.
    """

    layout: Layout
    shape: tuple[int, int]
    names: Mapping[str, str]
    activations: ActivationScheme | None = None

    def tensors(self, source: Source) -> dict[str, Tensor]:
        """Its tensors, mapped from the files.

        Raises:
            UserError: a tensor is missing or is not what the layout declares.
        """
        self.check(source)
        return {suffix: source.read(name) for suffix, name in self.names.items()}

    def check(self, source: Source) -> None:
        """Hold what the files' headers say of its tensors against its layout; no tensor is read.

        Raises:
            UserError: a tensor is missing or is not what the layout declares.
        """
        if missing := [name for name in self.names.values() if name not in source.headers]:
            raise UserError(f"{source.path} holds no tensor {missing[0]}, which its config.json promises")
        infos = {suffix: source.headers[name] for suffix, name in self.names.items()}
        found = {
            suffix: torch.empty(info.shape, dtype=info.dtype, device="meta") for suffix, info in infos.items()
        }
        try:
            self._check_inputs(found)
            check(self.layout, found, self.shape)
        except ValueError as error:
            where = next(iter(self.names.values())).rpartition(".")[0]
            raise UserError(f"{source.path}: {where} cannot be read: {error}") from error

    def _check_inputs(self, found: Mapping[str, Tensor]) -> None:
        for suffix in self.activations.stored if self.activations is not None else ():
            if suffix not in found or found[suffix].numel() != 1:
                raise ValueError(f"its static activations need one {suffix}")
