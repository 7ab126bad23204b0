"""mlx_lm on a checkpoint folder, in an environment of its own (`mlx-lm`, on Linux with `mlx[cpu]`; no torch).

python mlx_logits.py logits   FOLDER IDS.npy OUT.npy           IDS int64 [windows, length] → fp16 log-probabilities
python mlx_logits.py generate FOLDER IDS.npy OUT.json COUNT    greedy continuation of each window
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model


def open_model(folder: str) -> Any:
    model, _ = load_model(pathlib.Path(folder))
    return model


def logits(folder: str, ids_path: str, out_path: str) -> None:
    model = open_model(folder)
    found = []
    for window in np.load(ids_path):
        values = np.array(model(mx.array(window[None])).astype(mx.float32)[0], dtype=np.float64)
        values -= values.max(-1, keepdims=True)
        found.append((values - np.log(np.exp(values).sum(-1, keepdims=True))).astype(np.float16))
    np.save(out_path, np.stack(found))


def generate(folder: str, ids_path: str, out_path: str, count: str) -> None:
    model = open_model(folder)
    found = []
    for window in np.load(ids_path):
        tokens = [int(token) for token in window]
        for _ in range(int(count)):
            tokens.append(int(mx.argmax(model(mx.array([tokens]))[0, -1]).item()))
        found.append(tokens[len(window) :])
    pathlib.Path(out_path).write_text(json.dumps(found))


if __name__ == "__main__":
    {"logits": logits, "generate": generate}[sys.argv[1]](*sys.argv[2:])
