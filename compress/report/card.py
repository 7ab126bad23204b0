"""Model card: the `README.md` of an output, with the metadata that the hub reads and what a reader has to know."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from compress.assets import EMBEDDED
from compress.errors import UserError
from compress.evaluation import CheckpointFigures, Evaluation
from compress.recipe.recipe import Recipe
from compress.report.schema import Report
from compress.report.snippets import snippets
from compress.system import units as words

CARD = "README.md"
MARK = "\ntags:\n- compress\n"
"""By which a card is known to be ours."""
_FRONT = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_KEPT = (
    "license",
    "license_name",
    "license_link",
    "language",
    "pipeline_tag",
    "base_model",
    "base_model_relation",
)
"""Metadata that holds for the output as it holds for the source; ``base_model`` of an output that is described anew."""
_SHELL = frozenset({"vLLM", "llama.cpp"})
_RUNTIMES = {
    "gguf": ("llama.cpp", "llama-cli -m {folder}/model.gguf"),
    "mlx": ("mlx_lm", "mlx_lm.generate --model {folder} --prompt 'Hello'"),
}


def model_card(
    report: Report,
    evaluations: Sequence[Evaluation] = (),
    *,
    name: str,
    card: str | None = None,
    base_model: str | None = None,
) -> str:
    """The card of an output.

    Args:
        report: of the run that made it.
        evaluations: its figures beside the dense model's; without any the card says that nothing was measured.
        name: of the output's folder.
        card: the card of the source, or one that this function wrote for the same output; its licence and language are kept.
        base_model: the source's name on the hub; None where it is a folder.
    """
    data = _metadata(report, _front_matter(card), base_model)
    source = data.get("base_model", report.source.name)
    front = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"---\n{front}---",
        f"# {name}",
        _what(report, str(source)),
        _licence(data),
        "## Recipe\n\n" + _recipe(report),
        "## Measured\n\n" + _measured(evaluations, name),
        "## Load\n\n" + _load(report, name),
        "`compress.json` holds the figures of every weight and the hashes of all tensors; `report.html` shows them.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def read_card(folder: Path) -> str | None:
    """The text of the card in a folder; None where there is none that can be read."""
    try:
        return (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def hub_name(name: str) -> str | None:
    """The source's name if it is one of the hub, and not a folder."""
    return name if _HUB_NAME.fullmatch(name) and not Path(name).exists() else None


def _front_matter(card: str | None) -> Mapping[str, Any]:
    """The metadata of a card; empty where it has none or it cannot be read."""
    found = _FRONT.match(card or "")
    try:
        data = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, Mapping) else {}


def _metadata(report: Report, before: Mapping[str, Any], base_model: str | None) -> dict[str, Any]:
    ours = "compress" in (before.get("tags") or ()) if isinstance(before.get("tags"), list) else False
    kept = {key: before[key] for key in _KEPT if before.get(key)}
    if not ours:  # the base of the source is not the base of the output
        kept = {key: value for key, value in kept.items() if not key.startswith("base_model")}
    if base_model is not None:
        kept["base_model"] = base_model
    if "base_model" in kept:
        kept["base_model_relation"] = "quantized" if _is_quantized(report) else "finetune"
    library = {"gguf": "gguf", "mlx": "mlx"}.get(report.format.name, "transformers")
    tags = ["compress", report.format.name, str(report.recipe.get("name", ""))]
    return {**kept, "library_name": library, "tags": [tag for tag in tags if tag]}


def _is_quantized(report: Report) -> bool:
    return any(weight.bits_per_weight < 16 for weight in report.weights)


def _what(report: Report, source: str) -> str:
    size = f"{words.in_bytes(report.bytes.actual)} in place of {words.in_bytes(report.bytes.source)}"
    return (
        f"{source}, compressed by Compress {report.versions.get('compress-llm', '')} with the recipe "
        f"`{report.recipe.get('name')}`: {size} of weight files, "
        f"{_bits(report)}stored as {report.format.name}."
    )


def _bits(report: Report) -> str:
    bits = report.bits_per_weight
    return "" if bits is None else f"{words.figure(bits, 3)} bits per compressed weight, "


def _licence(data: Mapping[str, Any]) -> str:
    if "license" in data:
        return f"Licence: {data.get('license_name', data['license'])}, as the base model's."
    return "The card of the base model names no licence: its terms hold."


def _recipe(report: Report) -> str:
    text = yaml.safe_dump(_told(report.recipe), sort_keys=False, allow_unicode=True, width=100)
    calibration = report.calibration
    seen = (
        "No calibration data was read."
        if calibration is None
        else f"Calibrated on {calibration.samples} windows of {calibration.length} tokens of "
        f"{_text(calibration.data)}, seed {report.seed}."
    )
    return f"{seen}\n\n```yaml\n{text}```"


def _text(data: str) -> str:
    """A calibration text in words that mean something to who did not choose it."""
    return (
        "the text that ships with Compress (Python sources and documentation)" if data == EMBEDDED else data
    )


def _told(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without what is the default; as it is where another version has written it."""
    try:
        return Recipe.parse(recipe).model_dump(mode="json", exclude_defaults=True)
    except UserError:
        return dict(recipe)


def _measured(evaluations: Sequence[Evaluation], name: str) -> str:
    tables = [table for one in evaluations if (table := _table(one, name))]
    if tables:
        return "\n\n".join(tables)
    return "Nothing was measured. `compress eval BASE OUT --save figures.json`, then `compress report OUT --eval figures.json`."


def _table(evaluation: Evaluation, name: str) -> str:
    rows = [row for row in evaluation.candidates if row.name == name or Path(row.path).name == name]
    if not rows or evaluation.pooling is not None:
        return ""
    lines = ["| | bytes | perplexity | KL to dense | same top-1 |", "|---|---|---|---|---|"]
    lines += [_row("dense", evaluation.reference), *(_row(row.name, row) for row in rows)]
    lines += [
        f"\nMeasured at {evaluation.context}; KL in nats, mean ± standard error over {evaluation.windows} windows."
    ]
    tasks = [
        f"| {one.task} ({one.metric}) | {words.figure(base.value, 4)} | {words.figure(one.value, 4)}"
        + (f" ± {words.figure(one.stderr, 2)}" if one.stderr is not None else "")
        + " |"
        for one in rows[0].tasks
        for base in evaluation.reference.tasks
        if (base.task, base.metric) == (one.task, one.metric)
    ]
    if tasks:
        lines += ["\n| task | dense | this |", "|---|---|---|", *tasks]
    return "\n".join(lines)


def _row(name: str, row: CheckpointFigures) -> str:
    cells = [
        name,
        words.in_bytes(row.bytes_on_disk),
        words.figure(row.perplexity, 3)
        + (f" ± {words.figure(row.perplexity_error, 3)}" if row.perplexity_error else ""),
        words.divergence(row.kl) + (f" ± {words.divergence(row.kl_error)}" if row.kl_error else ""),
        words.percent(row.top1) + (f" ± {words.percent(row.top1_error)}" if row.top1_error else ""),
    ]
    return f"| {' | '.join(cells)} |"


def _load(report: Report, name: str) -> str:
    sections = [
        (one.name, "sh" if one.name in _SHELL else "python", one.code)
        for one in snippets(report, name)
        if one.name != "verify" and (one.name != "Python" or report.format.name not in _RUNTIMES)
    ]
    if report.format.name in _RUNTIMES:
        program, code = _RUNTIMES[report.format.name]
        sections.append((program, "sh", code.format(folder=name)))
    return "\n\n".join(f"{title}:\n\n```{language}\n{code}\n```" for title, language, code in sections)
