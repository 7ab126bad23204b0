"""What a compressed checkpoint costs in quality, bytes and time, compared to the dense one."""

from __future__ import annotations

from compress.evaluation.compare import Loader, evaluate
from compress.evaluation.figures import CheckpointFigures, Evaluation, TaskFigure
from compress.evaluation.tasks import run_tasks
from compress.evaluation.windows import text_windows

__all__ = [
    "CheckpointFigures",
    "Evaluation",
    "Loader",
    "TaskFigure",
    "evaluate",
    "run_tasks",
    "text_windows",
]
