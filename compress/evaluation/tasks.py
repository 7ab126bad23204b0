"""lm-evaluation-harness tasks on a loaded model (optional extra `eval`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.errors import UserError
from compress.evaluation.bars import bars_told_to
from compress.evaluation.figures import TaskFigure
from compress.recipe.registry import nearest

_TOLD_OF_A_LOADED_MODEL = ("`pretrained` model kwarg is not of type", "Passed an already-initialized model")


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[TaskFigure, ...]:
    """Run lm-evaluation-harness tasks by name.

    Args:
        tasks: names of tasks or groups.
        include_path: a folder with YAML files of further tasks.
        limit: at most so many samples of each task.
        progress: called with what the harness does, the requests done and all of them, in place of its bars.

    Returns:
        One figure for each numeric metric of each task, in the order of the tasks.

    Raises UserError if the harness is not installed or a task is unknown.
    """
    manager = find_tasks(tasks, include_path)
    # Optional, and slow to import.
    import lm_eval  # noqa: PLC0415
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    with bars_told_to(progress):
        with _without(_TOLD_OF_A_LOADED_MODEL):
            wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        output = lm_eval.simple_evaluate(
            model=wrapped,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            bootstrap_iters=1000,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    results, samples = output["results"], output.get("n-samples", {})
    return tuple(
        figure for task, metrics in results.items() for figure in _figures(task, metrics, samples.get(task))
    )


def check_tasks(tasks: Sequence[str], include_path: str | Path | None = None) -> None:
    """Load the tasks and their data, so that what is wrong with them is said before a model is loaded.

    Raises:
        UserError: as `find_tasks`; a task or its data cannot be loaded, or it asks for what is not done here.
    """
    manager = find_tasks(tasks, include_path)
    for name in tasks:
        try:
            with bars_told_to(None):
                loaded = manager.load([name])["tasks"]
        except Exception as error:  # a task's file can name any code and any data
            raise UserError(
                f"The task {name} cannot be loaded ({_sentence(error)}): its file has to be right and its data on this machine "
                "or within reach of the hub; docs/tasks/evaluate.md shows a task of local files."
            ) from error
        for one, task in loaded.items():
            if getattr(task, "UNSAFE_CODE", False):
                raise UserError(
                    f"The task {one} runs code that the model writes, which is not done here: leave it out."
                )
            if getattr(task, "MULTIMODAL", False):
                raise UserError(f"The task {one} shows images, and only text is measured here: leave it out.")


def find_tasks(tasks: Sequence[str], include_path: str | Path | None = None) -> Any:
    """The harness's manager of tasks, which knows all of ``tasks``.

    Args:
        tasks: names of tasks or groups.
        include_path: a folder with YAML files of further tasks.

    Raises:
        UserError: the harness is not installed, there is no such folder, or a task is unknown.
    """
    try:
        # Optional, and slow to import.
        import lm_eval  # noqa: F401, PLC0415
        from lm_eval.tasks import TaskManager  # noqa: PLC0415
    except ImportError as error:
        raise UserError(
            f"Tasks need lm-evaluation-harness, which does not load here ({error}): "
            'install it with `pip install "compress-llm[eval]"`.'
        ) from error
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"{include_path} is no folder: give the folder that holds the tasks' YAML files.")
    folder = None if include_path is None else str(include_path)
    # The harness's own tasks are indexed only where the folder's do not suffice.
    manager = _own_tasks() if folder is None else TaskManager(include_path=folder, include_defaults=False)
    if folder is not None and not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folder)
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise UserError(
            f"Unknown task {', '.join(unknown)}{_nearest(unknown[0], manager.all_tasks)}: `lm-eval ls tasks` lists the names, "
            f"and --include-path adds a folder of your own{_unreadable(folder)}."
        )
    return manager


@lru_cache(maxsize=1)
def _own_tasks() -> Any:
    """The manager of the harness's own thousands of tasks, whose indexing takes seconds: done once."""
    from lm_eval.tasks import TaskManager  # noqa: PLC0415

    return TaskManager()


def _nearest(name: str, known: Sequence[str]) -> str:
    """The task that was meant, for a sentence; empty where none is near."""
    near = nearest(name, known)
    return f" (did you mean {near}?)" if near else ""


def _unreadable(folder: str | None) -> str:
    """The task files of a folder that the harness passes over in silence since they are no YAML, for a sentence."""
    broken = []
    for file in sorted(Path(folder).glob("**/*.yaml")) if folder is not None else ():
        try:
            yaml.compose(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError):
            broken.append(str(file))
    return f" (what is no YAML: {', '.join(broken)})" if broken else ""


def _sentence(error: Exception) -> str:
    """An error on one line, without the full stop."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")


@contextmanager
def _without(start: Sequence[str]) -> Iterator[None]:
    """Drop the harness's warnings about how it is called: here they say nothing to anybody."""

    def other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(tuple(start))

    logger = logging.getLogger("lm_eval.models.huggingface")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _figures(task: str, metrics: Mapping[str, Any], samples: Mapping[str, int] | None) -> list[TaskFigure]:
    """The numeric metrics of one task; the harness names them "metric,filter" and "metric_stderr,filter"."""
    figures = []
    for key, value in metrics.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        stderr = metrics.get(f"{metric}_stderr,{chosen}")
        figures.append(
            TaskFigure(
                task=task,
                metric=metric if chosen == "none" else f"{metric} ({chosen})",
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, (int, float)) and math.isfinite(stderr) else None,
                samples=samples.get("effective") if samples else None,
            )
        )
    return figures
