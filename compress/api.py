"""The public functions, wired to what does the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.checkpoint.integrity import check_hashes
from compress.evaluation import Evaluation
from compress.evaluation import evaluate as _evaluate
from compress.formats.dense_source import open_any, open_dense
from compress.healing.stage import heal
from compress.pipeline.budget_steps import compress_to_budget, plan_budget
from compress.pipeline.export import export
from compress.pipeline.steps import compress, plan
from compress.pipeline.sweep import sweep
from compress.runtime.load import load
from compress.verification.checkpoint import VerifyReport
from compress.verification.checkpoint import verify as _verify
from compress.verification.fresh_process import check_opens
from compress.verification.outputs import check_logits


def evaluate(
    reference: str | Path,
    candidates: Sequence[str | Path] = (),
    *,
    text: str | Path,
    check: bool = False,
    **options: Any,
) -> Evaluation:
    """Measure checkpoints side by side; see :func:`compress.evaluation.evaluate` for the options.

    With ``check`` every tensor of the candidates is first held against the hashes of their ``compress.json``.
    """
    for path in candidates if check else ():
        check_hashes(open_any(path, trust_remote_code=options.get("trust_remote_code", False)))
    return _evaluate(reference, candidates, text=text, load=load, open_checkpoint=open_any, **options)


def verify(
    out: str | Path, source: str | Path, *, trust_remote_code: bool = False, fresh_process: bool = False
) -> VerifyReport:
    """Check a compressed checkpoint against its source.

    Nothing lost, renamed or left unpacked; every tensor that was to stay as it was byte-identical; every byte as it was
    written; sizes as planned; and the reloaded blocks compute what the decoded weights do.

    Args:
        out: the compressed checkpoint.
        source: the checkpoint that it was made from.
        trust_remote_code: run Python code that comes with the checkpoint.
        fresh_process: also open it with transformers in a process of its own, which takes memory for the whole model, twice.

    Raises:
        UserError: the first thing that is wrong.
    """
    opened = open_dense(source, trust_remote_code=trust_remote_code)
    return _verify(out, opened, checks=[check_logits, check_opens] if fresh_process else [check_logits])


__all__ = [
    "compress",
    "compress_to_budget",
    "evaluate",
    "export",
    "heal",
    "load",
    "plan",
    "plan_budget",
    "sweep",
    "verify",
]
