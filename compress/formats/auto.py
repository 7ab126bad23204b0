"""The choice of a form: the one that most programs load, where it can hold every weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compress_kernels.layouts import GGUFBlocks

from compress.errors import UserError
from compress.recipe.registry import find

from .base import Decoding, Exporter, Facts, Planned

Opens = Callable[[Exporter], "str | None"]
"""Why transformers cannot open the weights in a form, in words, or ``None`` if it can or cannot be asked."""


def choose(
    format: str, weights: Sequence[Planned], facts: Facts, opens: Opens | None = None
) -> tuple[Exporter, str]:
    """The exporter for ``format``, and the reason in words.

    ``auto`` is compressed-tensors where every weight can be expressed in it, bitsandbytes' form where every one is NF4, and
    native where neither will do or transformers cannot open it.

    Args:
        format: the name of a form, or ``auto``.
        weights: what is compressed.
        facts: what is known of the model.
        opens: tries a form in transformers' own loader; it is not tried where ``None``.

    Raises:
        UserError: the form asked for, or every form, cannot hold these weights; the sentence says which and why.
    """
    if facts.uneven:
        return _uneven(format, weights, facts)
    if format != "auto":
        return _asked_for(format, weights, facts, opens)
    if any(isinstance(weight.layout, GGUFBlocks) for weight in weights):
        blocks, _ = choose("gguf", weights, facts)
        return blocks, "the weights are in GGUF's blocks"
    objections = {}
    for name in ("compressed-tensors", "bitsandbytes"):
        exporter, reason = _loadable(name, weights, facts, opens)
        if exporter is not None:
            return exporter, reason
        objections[name] = reason
    native: Exporter = find("exporter", "native")()
    if refusal := native.objection(weights, facts):
        raise UserError(
            f"no packed format can hold this: {refusal}; target or ignore all of it, or use format dense"
        )
    nearest = "bitsandbytes" if all(w.layout.name == "nf4" for w in weights) else "compressed-tensors"
    return native, f"{nearest} cannot hold this: {objections[nearest]}"


def _loadable(
    name: str, weights: Sequence[Planned], facts: Facts, opens: Opens | None
) -> tuple[Exporter | None, str]:
    """The exporter of a form that transformers opens and why it is taken, or ``None`` and the objection."""
    plain: Exporter = find("exporter", name)()
    if objection := plain.objection(weights, facts):
        return None, objection
    failure = opens(plain) if opens is not None else None
    known = "bitsandbytes' form" if name == "bitsandbytes" else name
    if failure is None:
        return plain, f"every compressed weight can be expressed in {known}"
    if isinstance(plain, Decoding):
        decoding = plain.decoding()
        objection = decoding.objection(weights, facts)
        if objection is None and opens is not None:
            objection = opens(decoding)
        if objection is None:
            return decoding, (
                f"every compressed weight can be expressed in {known}; transformers decodes it while loading, "
                f"since its code does not run on packed layers ({failure})"
            )
    return None, f"transformers cannot open it ({failure})"


def _asked_for(
    format: str, weights: Sequence[Planned], facts: Facts, opens: Opens | None
) -> tuple[Exporter, str]:
    exporter: Exporter | None = find("exporter", format)()
    assert exporter is not None
    objection = exporter.objection(weights, facts)
    if objection is None and format in ("compressed-tensors", "bitsandbytes"):
        exporter, reason = _loadable(format, weights, facts, opens)
        objection = None if exporter is not None else reason
    if objection is not None or exporter is None:
        raise UserError(f"format {format} cannot hold this: {objection}; use format auto, native or dense")
    return exporter, "asked for"


def _uneven(format: str, weights: Sequence[Planned], facts: Facts) -> tuple[Exporter, str]:
    if format not in ("auto", "native"):
        raise UserError(
            f"format {format} cannot hold this: blocks of unequal widths are built by compress alone; use format auto"
        )
    own: Exporter = find("exporter", "native")()
    if refusal := own.objection(weights, facts):
        raise UserError(f"format native cannot hold this: {refusal}; target or ignore all of it")
    return own, "blocks have widths of their own, which only compress builds"
