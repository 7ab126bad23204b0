"""Log-probabilities of mlx_lm for a folder, computed in fp32: ``python mlx_logits.py FOLDER IDS.npy OUT.npy``.

In an environment of its own (`mlx-lm`, on Linux with `mlx-cpu`; no torch). IDS is int64 ``[windows, length]``, OUT fp32
``[windows, length, vocabulary]``. MLX's products on a CPU add up in bf16 where the model is bf16: parameters are cast first.
"""

from __future__ import annotations

import pathlib
import sys

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model


def main(folder: str, ids_path: str, out_path: str) -> None:
    model, _ = load_model(pathlib.Path(folder))
    model.set_dtype(mx.float32)
    found = []
    for window in np.load(ids_path):
        values = np.array(model(mx.array(window[None]))[0], dtype=np.float64)
        values -= values.max(-1, keepdims=True)
        found.append((values - np.log(np.exp(values).sum(-1, keepdims=True))).astype(np.float32))
    np.save(out_path, np.stack(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
