"""Which rule an operator has, and how it is applied: the labels of the result from those of the arguments.

Where an operator does not commute with a rotation of a space, its rule refuses the space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from . import arithmetic, places, products
from .calls import Call, Rule, expanded, labelled, unknown
from .labels import Labels, Row


def apply_rule(
    labels: Labels, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> None:
    """Label the results of an operator."""
    room, _, name = func._schema.name.partition("::")
    if room == "prim":
        return  # devices and dtypes say nothing about values
    name = name.removesuffix("_") if name.endswith("_") and not name.endswith("__") else name
    results = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
    inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    if not results:
        for tensor in inputs:
            labels.refuse(tensor, f"{labels.place} computes '{name}' of it")
        return
    if name in _ZEROS:
        labels.put_zeros(results[0])
        return
    if not inputs:
        return
    before = labels.of(results[0]) if results[0] is inputs[0] else None
    zero = labels.is_zero(inputs[0])
    if before is not None:
        labels.written_into(inputs[0])
    if not any(labelled(labels, tensor) for tensor in inputs):
        if name in _SAME and zero and before is None:
            labels.put_zeros(results[0])
        return
    call = Call(labels, name, args, kwargs, results[0], zero)
    if name in _SEVERAL:
        for index, value in enumerate(results):
            labels.put(value, _SEVERAL[name](replace(call, result=value), index))
        return
    row = _RULES.get(name, unknown)(call)
    if before is not None and row != before and not zero:
        call.refuse(args, kwargs)  # other tensors that share the memory keep the labels of before
    labels.put(results[0], row)


_ZEROS = {"zeros", "new_zeros", "zeros_like"}
_SAME = {
    "clone", "detach", "alias", "_to_copy", "contiguous", "lift_fresh", "neg", "view", "_unsafe_view", "expand", "transpose",
    "permute", "unsqueeze", "squeeze", "t",
}  # fmt: skip
_RULES: dict[str, Rule] = {
    **dict.fromkeys(("clone", "detach", "alias", "_to_copy", "lift_fresh", "neg", "contiguous"), places.kept),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), places.viewed),
    **dict.fromkeys(("t", "transpose", "permute"), places.permuted),
    "unsqueeze": places.unsqueezed,
    "squeeze": places.squeezed,
    "expand": expanded,
    **dict.fromkeys(("add", "sub"), arithmetic.added),
    **dict.fromkeys(("mul", "div"), arithmetic.multiplied),
    **dict.fromkeys(("pow", "square"), arithmetic.raised),
    **dict.fromkeys(("mean", "sum", "var", "std", "linalg_vector_norm"), arithmetic.reduced),
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), products.matmul),
    "embedding": products.looked_up,
    **dict.fromkeys(("cat", "stack"), places.concatenated),
    "index": places.indexed,
    "index_select": places.index_selected,
    "select": places.selected,
    "slice": places.sliced,
    "masked_fill": places.masked,
    "where": places.chosen,
    "index_add": places.index_added,
    "scatter_add": places.scatter_added,
    "gather": places.gathered,
}
_SEVERAL: dict[str, Callable[[Call, int], Row]] = {
    **dict.fromkeys(("split", "split_with_sizes"), places.split),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), products.normalised),
    "var_mean": products.moments,
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_attention_math",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        products.attended,
    ),
}
