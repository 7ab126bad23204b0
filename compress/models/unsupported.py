"""Why a tensor is not compressed, in words."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from compress.checkpoint.source import Source
from compress.models.disk_map import DiskMap
from compress.models.views import WeightView, block_of


def reasons(
    model: PreTrainedModel, blocks: Sequence[str], source: Source, disk: DiskMap, views: Sequence[WeightView]
) -> dict[str, str]:
    """The reason for every disk tensor of two or more dimensions that belongs to no view."""
    seen = {name for view in views for name in view.sources}
    owners = {piece.disk: parameter for parameter, pieces in disk.pieces.items() for piece in pieces}
    converted = {name: made.operations for made in disk.conversions.values() for name in made.names}
    result: dict[str, str] = {}
    for name, info in source.headers.items():
        if len(info.shape) < 2 or name in seen:
            continue
        if name in converted:
            result[name] = (
                f"transformers converts it in a way that is not understood here ({converted[name]})"
            )
        elif name not in owners:
            result[name] = "no parameter of the model uses it"
        else:
            result[name] = _reason(model, source, name, owners[name], blocks)
    return result


def _reason(model: PreTrainedModel, source: Source, name: str, parameter: str, blocks: Sequence[str]) -> str:
    owner, _, leaf = parameter.rpartition(".")
    module = model.get_submodule(owner)
    kind = type(module).__name__
    if leaf in module._buffers:
        return f"buffer of {kind}"
    if leaf.endswith("bias"):
        return f"bias of {kind}"
    if isinstance(module, nn.modules.conv._ConvNd):
        return f"kernel of a convolution ({kind})"
    if block_of(parameter, blocks) is None:
        return f"parameter of {kind}, outside the decoder blocks"
    if not source.headers[name].dtype.is_floating_point:
        return f"its elements are {source.headers[name].dtype}, not floating-point numbers"
    dims = len(model.get_parameter(parameter).shape)
    return f"plain {dims}-D parameter of {kind}, which is no linear layer, embedding or known kind of experts"
