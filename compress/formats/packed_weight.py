"""A packed weight of a checkpoint: its layout, its shape, and the names of its tensors on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from compress_kernels.activations import GLOBAL_SUFFIX, ActivationScheme, hadamard_blocks
from compress_kernels.layouts import (
    AWQInteger,
    GPTQInteger,
    Layout,
    MLXFloat,
    PackedInteger,
    ServedFloat,
    check,
)
from torch import Tensor

from compress.checkpoint.source import Source
from compress.errors import UserError


@dataclass(frozen=True)
class PackedWeight:
    """A weight of a checkpoint.

    Attributes:
        layout: in which it is given.
        shape: ``[out, in]``.
        names: suffix of its layout on disk → name of the tensor, calibrated ones of its inputs included.
        activations: how its inputs are rounded.
        stored: its layout on disk, where no operator multiplies with that: the codes are packed anew when they are read.
    """

    layout: Layout
    shape: tuple[int, int]
    names: Mapping[str, str]
    activations: ActivationScheme | None = None
    stored: GPTQInteger | AWQInteger | MLXFloat | ServedFloat | None = None

    def tensors(self, source: Source) -> dict[str, Tensor]:
        """Its tensors in its layout, mapped from the files or packed anew.

        Raises:
            UserError: a tensor is missing or is not what the layout declares.
        """
        self.check(source)
        tensors = {suffix: source.read(name) for suffix, name in self.names.items()}
        return tensors if self.stored is None else self._packed_anew(source, self.stored, tensors)

    def inputs(self, source: Source) -> dict[str, Tensor]:
        """What is calibrated of its inputs, by the suffixes of its scheme, each ``[1]``.

        ModelOpt stores the reciprocal of NVFP4's scale of all inputs under the name of an ordinary scale.
        """
        found = {}
        for suffix in self.activations.stored if self.activations is not None else ():
            tensor = source.read(self.names[suffix]).clone().reshape(1)
            turned = suffix == GLOBAL_SUFFIX and not self.names[suffix].endswith(GLOBAL_SUFFIX)
            found[suffix] = tensor.reciprocal() if turned else tensor
        return found

    def decode(self, source: Source, dtype: torch.dtype) -> Tensor:
        """The weight ``[out, in]`` that multiplies its inputs as they come, rounded in whatever basis."""
        return self.decoded(self.tensors(source), dtype)

    def decoded(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """As :meth:`decode`, from the weight's tensors by suffix."""
        order = None if self.activations is None else self.activations.hadamard
        if order is None:
            return self.layout.decode(tensors, self.shape, dtype)
        return hadamard_blocks(self.layout.decode(tensors, self.shape, torch.float32), order).to(dtype)

    def _packed_anew(
        self,
        source: Source,
        stored: GPTQInteger | AWQInteger | MLXFloat | ServedFloat,
        tensors: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        if isinstance(stored, MLXFloat | ServedFloat):
            return stored.to_plain(tensors) | self.inputs(source)
        assert isinstance(self.layout, PackedInteger)
        codes, scale, zero = stored.codes(tensors, self.shape)
        if self.layout.symmetric and not bool((zero == 1 << (self.layout.bits - 1)).all()):
            where = next(iter(self.names.values())).rpartition(".")[0]
            raise UserError(
                f"{source.path}: {where} has zero points, though config.json says that it is symmetric"
            )
        return self.layout.encode(codes, scale, zero)

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
            check(self.stored or self.layout, found, self.shape)
        except ValueError as error:
            where = next(iter(self.names.values())).rpartition(".")[0]
            raise UserError(f"{source.path}: {where} cannot be read: {error}") from error

    def _check_inputs(self, found: Mapping[str, Tensor]) -> None:
        for suffix in self.activations.stored if self.activations is not None else ():
            if suffix not in found or found[suffix].numel() != 1:
                raise ValueError(f"its static activations need one {suffix}")
