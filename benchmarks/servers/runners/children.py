"""The loop of a server's runner: each checkpoint in a forked process, an answer in JSON lines.

``python RUNNER.py JOBS.json OUT.jsonl``. JOBS holds ``ids`` (an `.npy` file, int64 ``[windows, length]``), ``prompts`` (how
many windows are continued), ``prompt`` (tokens of each that the server is given), ``new`` (tokens that it adds), ``seconds``
(limit for one checkpoint) and ``folders``. A line of OUT holds ``folder``, ``version``, and either ``error`` or ``perplexity``
(over all windows), ``top1`` (the likeliest token after each token but the last, ``[windows, length − 1]``) and ``greedy`` (the
new tokens of each prompt).
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Measure = Callable[[str, Any, dict[str, Any]], dict[str, Any]]
"""Folder, ids and job → the figures."""


def answer_all(version: str, measure: Measure) -> None:
    """Answer the jobs that the command line names."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    ids = np.load(job["ids"])
    with open(sys.argv[2], "w", encoding="utf-8") as out:
        for folder in job["folders"]:
            answer = _in_child(lambda folder=folder: measure(folder, ids, job), job["seconds"])
            out.write(json.dumps({"folder": folder, "version": version, **answer}) + "\n")
            out.flush()


def sentence(error: BaseException) -> str:
    """An error in one line, without the folders of this machine."""
    words = " ".join(str(error).split())
    words = re.sub(r"(?<![\w/])/(?:[\w.+-]+/)+", "", words)
    return f"{type(error).__name__}: {words if len(words) <= 300 else words[:299] + '…'}"


def _in_child(work: Callable[[], dict[str, Any]], seconds: int) -> dict[str, Any]:
    """What ``work`` returns in a forked process, or ``error``."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        signal.alarm(seconds)
        try:
            answer = work()
        except BaseException as error:  # whatever the server raises is the answer
            answer = {"error": sentence(error)}
        with os.fdopen(write, "w") as pipe:
            pipe.write(json.dumps(answer))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if text:
        return dict(json.loads(text))
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return {"error": f"no answer in {seconds} s"}
    return {"error": f"the process ended with status {os.waitstatus_to_exitcode(status)}"}
