"""mlx_lm on a CPU: see ``children.py``."""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

from children import answer_all


def measure(folder: str, ids: Any, job: dict[str, Any]) -> dict[str, Any]:
    # In the child: MLX starts threads when it is imported, and they do not survive a fork.
    import mlx.core as mx  # noqa: PLC0415
    from mlx_lm import load  # noqa: PLC0415

    model, _ = load(folder)
    loss, top1, windows = 0.0, [], ids.tolist()

    def log_probabilities(tokens: list[int]) -> Any:
        logits = model(mx.array([tokens]))[0].astype(mx.float32)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    for window in windows:
        found = log_probabilities(window)[:-1]
        loss -= float(mx.take_along_axis(found, mx.array(window[1:])[:, None], axis=-1).sum())
        top1.append(mx.argmax(found, axis=-1).tolist())
    greedy = []
    for window in windows[: job["prompts"]]:
        tokens = window[: job["prompt"]]
        for _ in range(job["new"]):
            tokens = [*tokens, int(mx.argmax(log_probabilities(tokens)[-1]).item())]
        greedy.append(tokens[job["prompt"] :])
    return {"perplexity": math.exp(loss / ids[:, 1:].size), "top1": top1, "greedy": greedy}


if __name__ == "__main__":
    answer_all(version("mlx-lm"), measure)
