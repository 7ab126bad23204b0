"""Finds the coordinate spaces of a model by watching one forward on the meta device, operator by operator.

Every dimension of every tensor gets a label: it runs over the features of a space, over a dimension of a parameter, or over
neither. A rule for each operator says what becomes of the labels; an operator without a rule refuses the spaces that it is
given. No family of models is named.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from compress.models.build import build_on_meta
from compress.models.skeleton import Skeleton
from compress.models.views import block_of

from .labels import Labels
from .operators import apply_rule
from .spaces import Rotatable, Space, Spaces, Writer

_CACHES = ("past_key_values", "cache_params", "hidden_states", "attentions")
"""Outputs that nothing but the model itself reads, or that are not asked for."""


def find_spaces(skeleton: Skeleton) -> Spaces:
    """The spaces of the skeleton's model that can be rotated; no tensor is read.

    Args:
        skeleton: the model; it stays as it is.
    """
    model = build_on_meta(skeleton.source)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tied = skeleton.tied
    labels = Labels({key: tied.get(name, name) for key, name in names.items()})
    with contextlib.suppress(AttributeError, ValueError, KeyError):
        model.set_experts_implementation("batched_mm")
    with contextlib.suppress(AttributeError, ValueError, KeyError):
        model.set_attn_implementation("eager")
    failure = _watch(model, labels)
    embedding: Any = model.get_input_embeddings()
    name = names.get(id(getattr(embedding, "weight", None)), "")
    return _result(skeleton, labels, tied.get(name, name), failure)


class _Watcher(TorchDispatchMode):
    """Runs the rule of every operator behind the operator itself."""

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self._labels = labels

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        apply_rule(self._labels, func, args, dict(kwargs or {}), result)
        return result


def _watch(model: PreTrainedModel, labels: Labels) -> str:
    """Run the model; why its forward did not end, or an empty string."""
    logger = logging.getLogger(FakeTensorMode.__module__)
    before, logger.disabled = logger.disabled, True
    handles = [
        module.register_forward_pre_hook(lambda _, __, name=name: labels.enter(name))
        for name, module in model.named_modules()
    ]
    handles += [
        module.register_forward_hook(lambda _, __, ___, name=name: labels.leave(name))
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), _Watcher(labels):
            output = model(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta"), use_cache=True)
    except Exception as error:  # any model code may fail on meta in any way
        return f"its forward cannot be followed without weights ({type(error).__name__})"
    finally:
        logger.disabled = before
        for handle in handles:
            handle.remove()
    fields = output.items() if isinstance(output, Mapping) else [("", output)]
    for field, value in fields:
        if field not in _CACHES:
            for tensor in tree_leaves(value):
                if isinstance(tensor, Tensor):
                    labels.refuse(tensor, "the model returns it")
    return ""


def _result(skeleton: Skeleton, labels: Labels, embedding: str, failure: str) -> Spaces:
    labels.settle()
    if failure:
        return Spaces(None, failure, ())
    first = labels.spaces.get((embedding, 1))
    if first is None:
        return Spaces(None, "no token embedding writes a residual stream", ())
    stream = first.root
    inner: dict[int, Space] = {}
    for space in labels.every_space():
        root = space.root
        if root is not stream and root.readers and not root.refusal and _inside(skeleton, root):
            inner.setdefault(id(root), root)
    refusal = stream.refusal or ("" if stream.readers else "nothing reads it")
    if not refusal and stream.block != stream.size:
        refusal = f"its {stream.size} features are cut into blocks of {stream.block}"
    found = tuple(Rotatable.of(space) for space in inner.values())
    return Spaces(None if refusal else Rotatable.of(stream), refusal, found)


def _inside(skeleton: Skeleton, space: Space) -> bool:
    """Whether all parameters of a space lie in one decoder block."""
    parts: list[Any] = [*space.writers, *space.readers]
    blocks = {block_of(part.parameter, skeleton.blocks) for part in parts}
    return len(blocks) == 1 and None not in blocks and any(isinstance(part, Writer) for part in parts)
