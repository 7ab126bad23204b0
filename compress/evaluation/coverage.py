"""Whether the texts of an evaluation are of the calibration's domain, by measured coverage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from compress_kernels.forward import quick_forward
from torch import Tensor
from transformers import PreTrainedModel

from compress.linalg.leverage import FOREIGN, leverage, second_moment

WINDOWS = 8
LENGTH = 256
"""So many windows of each text, of at most so many tokens, are looked at."""


def coverage(model: PreTrainedModel, calibration: Tensor, text: Tensor) -> float:
    """The largest leverage of a text against the calibration text, over the hidden states before each block.

    Args:
        calibration, text: int64 ``[windows, length]``.
    """
    first, second = _moments(model, calibration), _moments(model, text)
    return max(leverage(one, other) for one, other in zip(first, second, strict=True))


@torch.inference_mode()
def _moments(model: PreTrainedModel, windows: Tensor) -> list[Tensor]:
    states = [_hidden(model, window) for window in windows[:WINDOWS, :LENGTH]]
    # Before the blocks: the last one of the states is behind them.
    return [second_moment(layer) for layer in zip(*(one[:-1] for one in states), strict=True)]


def _hidden(model: PreTrainedModel, window: Tensor) -> tuple[Tensor, ...]:
    with quick_forward():
        found = model(input_ids=window[None].to(model.device), use_cache=False, output_hidden_states=True)
    return tuple(state.float().cpu() for state in found.hidden_states)


def coverage_notes(
    model: PreTrainedModel, calibration: Tensor, name: str, texts: Sequence[tuple[str, Tensor]]
) -> list[str]:
    """A sentence on each text's coverage, and a warning where the first is foreign or none is.

    Args:
        name: of the calibration text.
        texts: names and windows, int64 ``[windows, length]``; the first is what the headline is measured on.
    """
    found = {text: coverage(model, calibration, windows) for text, windows in texts}
    notes = [_sentence(text, value, name) for text, value in found.items()]
    values = list(found.values())
    if values[0] >= FOREIGN:
        notes.append(f"{texts[0][0]} is foreign to the calibration on {name}: calibrate on text like it.")
    elif max(values) < FOREIGN:
        notes.append(
            f"No text is of another domain than the calibration on {name}: name one that is, to see what others lose."
        )
    return notes


def _sentence(text: str, value: float, calibration: str) -> str:
    domain = "another domain" if value >= FOREIGN else "the same domain"
    return f"{text} has {value:.2f} times the leverage of {calibration}: {domain}."
