"""Sparse training: masks move while a model is trained, then stay; the weights outside them are 0 at the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UserError


class SparseTraining:
    """What a rule of masks does to the linear layers of a model, step by step.

    Args:
        model: in training.
        rule: an entry of :data:`compress.recipe.registry.MASKS`.
        sparsity: the share of every linear layer's weight that is 0 at the end; the head stays whole.
        steps: of the training.
        seed: of random masks.
    """

    def __init__(self, model: nn.Module, rule: Any, sparsity: float, steps: int, seed: int) -> None:
        self.rule, self.sparsity = rule, sparsity
        self.layers = linear_layers(model)
        self._prepared = hasattr(rule, "prepare")
        if self._prepared:
            rule.prepare(self.layers, sparsity)
        self.moving = round(rule.settled * steps)
        self.masks: dict[str, Tensor] | None = None
        self._state = rule.begin(self.weights, sparsity, torch.Generator().manual_seed(seed))
        if self.moving == 0:
            self._settle()

    @property
    def weights(self) -> dict[str, Tensor]:
        """Layer → the weight that is trained, ``[out, in]``."""
        before = self._prepared and self.masks is None
        return {name: _weight(layer, before=before) for name, layer in self.layers.items()}

    @torch.no_grad()
    def after_step(self, step: int, rate: float) -> bool:
        """What follows an update, ``step`` counting from 1; whether the parameters of the model are other ones now."""
        if self.masks is None:
            self.rule.after_step(
                self.weights, self._state, sparsity=self.sparsity, done=step / self.moving, rate=rate
            )
            if step < self.moving:
                return False
            self._settle()
            return self._prepared
        self._apply()
        return False

    @property
    def zeros(self) -> dict[str, float]:
        """Layer → the share of its weight that is 0."""
        return {name: float((weight == 0).float().mean()) for name, weight in self.weights.items()}

    @torch.no_grad()
    def _settle(self) -> None:
        if self._prepared:
            self.rule.finish(self.layers)
            self.masks = {}  # from here on the layers hold their weights themselves
        self.masks = self.rule.settle(self.weights, self._state, self.sparsity)
        self._state = {}
        self._apply()

    def _apply(self) -> None:
        assert self.masks is not None
        for name, weight in self.weights.items():
            weight.mul_(self.masks[name])


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a model but its head.

    Raises:
        UserError: it has none.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    if not found:
        raise UserError(
            "the model has no linear layers besides its head, and so nothing to replace or prune: train it as 'full'"
        )
    return found


def _weight(layer: Any, *, before: bool) -> Tensor:
    """The weight of a layer, or what a parametrization makes it of."""
    found: Tensor = (layer.parametrizations.weight.original if before else layer.weight).data
    return found
