"""The form of the output: the one that is asked for, or the best that can hold the weights and that transformers opens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from compress.errors import UserError
from compress.formats import Decoding, Exporter, Facts, Opens, can_try, choose, loading_error, passed_over
from compress.models.flow import Flow
from compress.models.skeleton import Skeleton
from compress.planning.outputs import output_tensors
from compress.planning.plan import PlannedWeight

Planning = Callable[[bool], list[PlannedWeight]]
"""Plans the weights; told whether weights whose group size is ``auto`` share one."""


@dataclass(frozen=True)
class FormOptions:
    """What was settled by trying transformers, so that a plan can be made again where it cannot be tried.

    Attributes:
        common_sizes: weights whose group size is ``auto`` share one.
        dequantize: transformers decodes the weights while it loads them.
    """

    common_sizes: bool = False
    dequantize: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FormOptions:
        """The inverse of :meth:`to_json`."""
        return cls(bool(data.get("common_sizes")), bool(data.get("dequantize")))


@dataclass(frozen=True)
class Form:
    """A form, why it was chosen, and the weights as it holds them."""

    exporter: Exporter
    reason: str
    weights: tuple[PlannedWeight, ...]
    options: FormOptions


def choose_form(
    skeleton: Skeleton,
    format: str,
    facts: Facts,
    planned: Planning,
    *,
    sizes_can_be_shared: bool = False,
    settled: FormOptions | None = None,
) -> Form:
    """Choose the form of an output.

    Where transformers reads one scheme alone, weights whose group size is ``auto`` are planned once more with a size that they
    share.

    Args:
        skeleton: the model, on meta.
        format: the name of a form, or ``auto``.
        facts: what is known of the model.
        planned: plans the weights.
        sizes_can_be_shared: that makes a difference.
        settled: what an earlier plan found out; ``None`` tries it.

    Raises:
        UserError: no form, or not the one asked for, can hold the weights.
    """
    if settled is not None:
        return _form(skeleton, format, facts, planned(settled.common_sizes), settled.common_sizes, settled)
    bare = planned(False)
    if not sizes_can_be_shared:
        return _form(skeleton, format, facts, bare, False, None)
    try:
        form = _form(skeleton, format, facts, bare, False, None)
    except UserError:
        return _form(skeleton, format, facts, planned(True), True, None)
    if format != "auto" or form.exporter.name != "native":
        return form
    shared = _form(skeleton, format, facts, planned(True), True, None)
    return form if shared.exporter.name == "native" else shared


def _form(
    skeleton: Skeleton,
    format: str,
    facts: Facts,
    bare: Sequence[PlannedWeight],
    common: bool,
    settled: FormOptions | None,
) -> Form:
    opens = _opener(skeleton, facts, bare) if settled is None else _as_settled(settled)
    exporter, reason = choose(format if bare or facts.uneven else "dense", bare, facts, opens)
    options = FormOptions(common, bool(getattr(exporter, "dequantize", False)))
    return Form(exporter, reason, _stored(exporter, bare, facts), options)


def _stored(exporter: Exporter, bare: Sequence[PlannedWeight], facts: Facts) -> tuple[PlannedWeight, ...]:
    return tuple(replace(w, stored=exporter.stored(w, facts), tensors=exporter.specs(w, facts)) for w in bare)


def _as_settled(settled: FormOptions) -> Opens:
    def opens(exporter: Exporter) -> str | None:
        plain = isinstance(exporter, Decoding) and not getattr(exporter, "dequantize", False)
        return "as it was planned" if plain and settled.dequantize else None

    return opens


def _opener(skeleton: Skeleton, facts: Facts, bare: Sequence[PlannedWeight]) -> Opens:
    """Tries a form of these weights in transformers' own loader."""

    def opens(exporter: Exporter) -> str | None:
        weights = _stored(exporter, bare, facts)
        config = exporter.quantization_config(weights, facts)
        if config is None or not can_try(config["quant_method"]):
            return None
        if objection := _of_the_code(skeleton.flow, weights, exporter):
            return objection
        if exporter.name == "bitsandbytes":
            modules = [weight.view.module for weight in weights]
            return passed_over(skeleton.model, config, modules)
        shapes = {weight.name: weight.view.shape for weight in weights}
        outputs, _ = output_tensors(weights, facts)
        return loading_error(skeleton.model, config, dict(outputs), shapes, facts.headers)

    return opens


def _of_the_code(flow: Flow, weights: Sequence[PlannedWeight], exporter: Exporter) -> str | None:
    """Why the model's code does not run on weights that its loader keeps packed, where a forward shows it."""
    if getattr(exporter, "dequantize", False):
        return None
    for weight in weights:
        if weight.view.parameter in flow.changed:
            return f"the model's code changes {weight.view.parameter} in place"
        if exporter.name == "bitsandbytes" and weight.view.module in flow.read:
            return f"the model's code reads {weight.view.parameter} itself"
    return None
