"""The choice of a form: the one that most programs load, where it can hold every weight."""

from __future__ import annotations

from collections.abc import Sequence

from compress_kernels.layouts import GGUFBlocks

from compress.errors import UserError
from compress.recipe.registry import find

from .base import Exporter, Facts, Planned


def choose(format: str, weights: Sequence[Planned], facts: Facts) -> tuple[Exporter, str]:
    """The exporter for ``format``, and the reason in words.

    ``auto`` is compressed-tensors where every weight can be expressed in it, bitsandbytes' form where every one is NF4, and
    native where neither will do.

    Raises:
        UserError: the form asked for, or every form, cannot hold these weights; the sentence says which and why.
    """
    if facts.uneven:
        if format not in ("auto", "native"):
            raise UserError(
                f"format {format} cannot hold this: blocks of unequal widths are built by compress alone; use format auto"
            )
        own: Exporter = find("exporter", "native")()
        if refusal := own.objection(weights, facts):
            raise UserError(f"format native cannot hold this: {refusal}; target or ignore all of it")
        return own, "blocks have widths of their own, which only compress builds"
    if format != "auto":
        exporter: Exporter = find("exporter", format)()
        if objection := exporter.objection(weights, facts):
            raise UserError(
                f"format {format} cannot hold this: {objection}; use format auto, native or dense"
            )
        return exporter, "asked for"
    if any(isinstance(weight.layout, GGUFBlocks) for weight in weights):
        blocks, _ = choose("gguf", weights, facts)
        return blocks, "the weights are in GGUF's blocks"
    first: Exporter = find("exporter", "compressed-tensors")()
    objection = first.objection(weights, facts)
    if objection is None:
        return first, "every compressed weight can be expressed in compressed-tensors"
    second: Exporter = find("exporter", "bitsandbytes")()
    if second.objection(weights, facts) is None:
        return second, "every compressed weight can be expressed in bitsandbytes' form"
    native: Exporter = find("exporter", "native")()
    if refusal := native.objection(weights, facts):
        raise UserError(
            f"no packed format can hold this: {refusal}; target or ignore all of it, or use format dense"
        )
    if all(weight.layout.name == "nf4" for weight in weights):
        return native, f"bitsandbytes cannot hold this: {second.objection(weights, facts)}"
    return native, f"compressed-tensors cannot hold this: {objection}"
