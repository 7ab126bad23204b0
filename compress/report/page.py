"""`report.html`: one file that works offline, in light and dark, on a phone and on paper."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from compress.diagnose.diagnosis import Diagnosis
from compress.evaluation.figures import Evaluation
from compress.report import views
from compress.report.allocation import allocation_view
from compress.report.charts import join
from compress.report.diagnosis import diagnosis_view
from compress.report.healing import healing_view
from compress.report.quality import quality_view
from compress.report.schema import EVALUATION, Report
from compress.report.snippets import snippets
from compress.report.spectra import spectra_view, table
from compress.report.timeline import timeline
from compress.system import units as words
from compress.system.files import write_text

_MARK = "· compression report</title>"


def write_report(
    report: Report,
    evaluations: Sequence[Evaluation] | None,
    path: str | Path,
    *,
    name: str | None = None,
    diagnosis: Diagnosis | None = None,
) -> None:
    """Write the page for a report.

    Args:
        report: what `compress.json` holds.
        evaluations: shown where there are any; None takes `evaluation.json` from the page's folder if it is there.
        path: the file to write, usually `report.html` beside `compress.json`.
        name: the checkpoint's name on the page; by default the name of the folder that the page lies in.
        diagnosis: shown where there is one.

    Raises:
        UserError: there is a link of that name, a file that is no such page, or it cannot be written.
    """
    path = Path(path)
    if evaluations is None:
        beside = path.parent / EVALUATION
        evaluations = [Evaluation.read(beside)] if beside.is_file() else []
    folder = name or path.resolve().parent.name
    write_text(path, render_report(report, evaluations, name=folder, diagnosis=diagnosis), mark=_MARK)


def render_report(
    report: Report,
    evaluations: Sequence[Evaluation],
    *,
    name: str,
    diagnosis: Diagnosis | None = None,
) -> str:
    """The page as a string; `name` is the name of the checkpoint's folder."""
    quality = [quality_view(evaluation, name) for evaluation in evaluations]
    return template("page.html").render(
        report=report,
        name=name,
        words=words,
        size=views.size_view(report),
        snippets=snippets(report, name),
        quality=quality,
        own=next((view.highlighted for view in quality if view.highlighted is not None), None),
        allocation=allocation_view(report),
        error=views.error_view(report),
        spectra=None if (spectra := spectra_view(report)) is None else table(spectra),
        healing=healing_view(report.healing),
        diagnosis=diagnosis_view(diagnosis),
        cost=views.cost_view(report),
        timeline=timeline(report),
        skipped=views.skipped_view(report.skipped),
        fallbacks=views.fallback_view(report),
        listed=report.weights if len(report.weights) <= views.MOST_LISTED else (),
        recipe=views.recipe_text(report),
        sensitivity=views.sensitivity_text(report),
    )


def template(name: str) -> Template:
    """A page's template; every page has the style sheet and the one script."""
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    """The templates, each compiled once: a run writes its page twice."""
    environment = Environment(
        loader=PackageLoader("compress.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    script = resources.files("compress.report").joinpath("sort.js").read_text(encoding="utf-8")
    # The one script is allowed by its hash, so that a text which slips through as code does not run.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {"script": Markup(script), "script_hash": f"sha256-{digest}"}
    return environment


def breakable(name: str) -> Markup:
    """A dotted name, escaped, that a narrow column may break after its dots."""
    parts = name.split(".")
    return join([*(escape(part) + Markup(".<wbr>") for part in parts[:-1]), escape(parts[-1])])
