"""KL of a quantized model to the dense one, in the process that has quantized it: for tools whose output only they simulate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


@torch.no_grad()
def divergence(model: Any, ids_path: str, dense_path: str) -> dict[str, float]:
    """Figures of a causal model.

    Args:
        model: gives logits ``[1, length, vocabulary]``.
        ids_path: an ``.npy`` file, int64 ``[windows, length]``.
        dense_path: an ``.npy`` file, the dense model's log-probabilities fp32 ``[windows, length, vocabulary]``.

    Returns:
        ``kl``, KL(dense ‖ model) in nats, and ``top1``, the share of equal likeliest tokens; means over all tokens.
    """
    ids, dense = np.load(ids_path), np.load(dense_path, mmap_mode="r")
    kl = same = 0.0
    for window, reference in zip(ids, dense, strict=True):
        p = torch.from_numpy(np.array(reference))
        q = model(input_ids=torch.from_numpy(window[None]), use_cache=False).logits[0].float().log_softmax(-1)
        kl += float((p.exp() * (p - q)).sum(dtype=torch.float64))
        same += float((p.argmax(-1) == q.argmax(-1)).sum())
    return {"kl": kl / ids.size, "top1": same / ids.size}
