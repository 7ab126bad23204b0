"""Noise and confidence: what a grid's rounding costs the model, by kind of weight, and how far its probabilities come true."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from compress.diagnose.base import Cell, Finding, percent, role_of
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView

NOISE = "noise"
CONFIDENCE = "confidence"
BITS = 4
GROUP = 128
BINS = 10
NOISED = 2
"""Windows that are measured under noise, a forward for every kind of weight; the probabilities are judged on all."""


def noise(skeleton: Skeleton, tokens: Tensor, tick: Callable[[str], None]) -> tuple[Finding, Finding]:
    """KL of the model under noise of a 4-bit grid's size in one kind of weight at a time, and its calibration error.

    Noise is uniform within half a step of a symmetric grid with groups of 128 columns, as rounding to it would be. The model is
    in memory as a whole.

    Args:
        tokens: int64 ``[samples, length]``, on the device of the model.
        tick: called with the name of each kind.
    """
    dense, few = list(_log_probabilities(skeleton, tokens)), tokens[:NOISED]
    shares = [scores.exp() for scores in dense[:NOISED]]
    kinds: dict[str, list[WeightView]] = {}
    for view in skeleton.views:
        if view.block is not None and not view.router:
            kinds.setdefault(role_of(view), []).append(view)
    rows: list[tuple[Cell, ...]] = []
    for role, views in kinds.items():
        tick(role)
        with noisy(skeleton, views):
            noised = _log_probabilities(skeleton, few)
            # Σ p (log p − log q), in the memory of log q: a vocabulary's worth of temporaries is what takes time here.
            kl = -sum(
                float(q.sub_(p).mul_(share).sum()) for p, share, q in zip(dense, shares, noised, strict=False)
            )
        parameters = sum(view.shape[0] * view.shape[1] for view in views)
        rows.append((role, kl / few.numel(), parameters, kl / few.numel() / parameters * 1e9))
    rows.sort(key=lambda row: -float(str(row[3])))
    columns = ("noise in", "KL, nats", "weights", "KL for 10⁹ weights")
    advice = f"A bit more in {rows[0][0]} buys most for its bytes, one less in {rows[-1][0]} costs least."
    return (
        Finding(NOISE, f"KL under noise of a {BITS}-bit grid", columns, tuple(rows), advice),
        confidence(dense, list(tokens.cpu())),
    )


def confidence(log_probabilities: Iterable[Tensor], tokens: Iterable[Tensor]) -> Finding:
    """Expected calibration error (Guo et al., 2017, eq. 3): the likeliest token's probability against its frequency."""
    sure, right = [], []
    for scores, window in zip(log_probabilities, tokens, strict=True):
        best = scores[:-1].max(-1)
        sure.append(best.values.exp().double())
        right.append((best.indices == window[1:]).double())
    p, hit = torch.cat(sure), torch.cat(right)
    which = (p * BINS).long().clamp_max(BINS - 1)
    rows: list[tuple[Cell, ...]] = []
    error = 0.0
    for index in range(BINS):
        here = which == index
        if not bool(here.any()):
            continue
        said, found = float(p[here].mean()), float(hit[here].mean())
        error += float(here.double().mean()) * abs(said - found)
        rows.append((f"{index / BINS:.1f} to {(index + 1) / BINS:.1f}", int(here.sum()), said, found))
    over = float(p.mean() - hit.mean())
    manner = "over" if over > 0 else "under"
    advice = f"The calibration error is {percent(error)}, {manner}confident: compare it after compression."
    columns = ("confidence", "tokens", "said", "came true")
    return Finding(CONFIDENCE, "Calibration of the probabilities", columns, tuple(rows), advice)


@contextmanager
def noisy(skeleton: Skeleton, views: list[WeightView]) -> Iterator[None]:
    """Weights with uniform noise of half a step of the grid; what they were comes back."""
    kept = {view.name: view.get(skeleton.parameter_of(view).detach()).clone() for view in views}
    generator = torch.Generator().manual_seed(0)
    try:
        for view in views:
            weight = kept[view.name].float()
            columns = weight.shape[1]
            group = next(size for size in range(min(GROUP, columns), 0, -1) if columns % size == 0)
            step = weight.reshape(len(weight), -1, group).abs().amax(2, keepdim=True) / (
                (1 << (BITS - 1)) - 1
            )
            random = (
                torch.rand(len(weight), columns // group, group, generator=generator).to(weight.device) - 0.5
            )
            view.put(skeleton.parameter_of(view), weight + (random * step).reshape(weight.shape))
        yield
    finally:
        for view in views:
            view.put(skeleton.parameter_of(view), kept[view.name])


def _log_probabilities(skeleton: Skeleton, tokens: Tensor) -> Iterator[Tensor]:
    """Of each window, fp32 ``[length, vocabulary]`` in main memory."""
    for row in tokens:
        with torch.no_grad():
            logits = skeleton.model(input_ids=row[None]).logits[0]
            scores = torch.log_softmax(logits, -1, dtype=torch.float32).cpu()
        yield scores
