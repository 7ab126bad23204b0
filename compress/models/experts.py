"""Experts of a mixture, held by transformers as 3-D parameters: which way round they lie, and where gate
and up are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Rows = tuple[int, int, int]
"""start, stop, step along the output features."""


CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")
"""Names of the setting that says how many experts a token is sent to."""


def runs_experts(module: nn.Module) -> bool:
    """Whether transformers' experts interface runs this module, that is, its layout is known and it can be
    watched."""
    return all(hasattr(module, name) for name in ("has_gate", "is_transposed", "down_proj")) and hasattr(
        module, "gate_up_proj" if module.has_gate else "up_proj"
    )


def gate_and_up(module: nn.Module, features: int) -> tuple[Rows, Rows] | None:
    """Which output features of the fused projection are the gate and which the up projection.

    Found by asking the module itself: its gating function is differentiated at a random point. The up
    projection enters it linearly, so the input with a second derivative is the gate.

    features: the fused number, gate and up together. Returns: None if the answer is neither halves nor
    alternation.
    """
    half = features // 2
    probe = getattr(module, "_apply_gate", None)
    if probe is None or features % 2 or half < 2:
        return None
    generator = torch.Generator().manual_seed(0)
    point = 0.2 + 0.3 * torch.rand(1, features, generator=generator, dtype=torch.float64)
    halves: tuple[Rows, Rows] = ((0, half, 1), (half, features, 1))
    turns: tuple[Rows, Rows] = ((0, features, 2), (1, features, 2))
    for first, second in (halves, turns):
        found = {_gate_of(probe, point, index, first, second) for index in (0, 1, half - 1)}
        if len(found) == 1 and None not in found:
            return (first, second) if found.pop() == 0 else (second, first)
    return None


def _gate_of(
    probe: Callable[[torch.Tensor], torch.Tensor], point: torch.Tensor, index: int, first: Rows, second: Rows
) -> int | None:
    """0 or 1: which of the two features that output `index` depends on is the gate. None: it depends on
    others."""
    pair = [rows[0] + index * rows[2] for rows in (first, second)]
    point = point.clone().requires_grad_()
    try:
        with torch.enable_grad():
            output = probe(point)[0, index]
            (slope,) = torch.autograd.grad(output, point, create_graph=True)
            if sorted(pair) != torch.nonzero(slope[0]).flatten().tolist():
                return None
            bends = [_bend(slope[0, feature], point)[0, feature].item() for feature in pair]
    except (RuntimeError, NotImplementedError, TypeError, IndexError, AttributeError):
        return None  # a gate that cannot be tried on its own, for example with parameters (on meta) inside
    return 1 if bends[0] == 0 and bends[1] != 0 else 0


def _bend(slope: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    if not slope.requires_grad:
        return torch.zeros_like(point)
    (bend,) = torch.autograd.grad(slope, point, retain_graph=True, allow_unused=True)
    return torch.zeros_like(point) if bend is None else bend
