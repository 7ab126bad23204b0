"""Experts of a mixture whose weights stay packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from compress_kernels.modules import PackedLinear
from torch import Tensor, nn

from compress.models.experts import Rows

WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")


class PackedExperts(nn.Module):
    """In the place of one of transformers' experts modules: routing comes in as it does there, an expert is two products.

    Activation, gate and biases are the module's own, under their own names. The packed weights are
    ``packed.PARAMETER.EXPERT.PART``: a parameter that fuses gate and up has two parts.
    """

    kind: Any
    packed: Any
    has_gate: bool
    act_fn: Any
    post_expert_norm: Any

    def __init__(
        self, experts: nn.Module, parts: Mapping[str, Sequence[Sequence[tuple[Rows, PackedLinear]]]]
    ) -> None:
        """``parts``: parameter → expert → the output features that a packed weight makes, and that weight."""
        super().__init__()
        # What its class reads while it computes: sizes, limits, flags.
        self.__dict__.update({key: value for key, value in vars(experts).items() if key[0] != "_"})
        for name, child in experts.named_children():
            self.add_module(name, child)
        for name, parameter in experts.named_parameters(recurse=False):
            if name not in parts:
                self.register_parameter(name, parameter)
        self.kind = type(experts)
        self.rows = {
            name: [[rows for rows, _ in expert] for expert in table] for name, table in parts.items()
        }
        self.packed = nn.ModuleDict(
            {
                name: nn.ModuleList(nn.ModuleList(linear for _, linear in expert) for expert in table)
                for name, table in parts.items()
            }
        )

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """``[tokens, hidden]``, and for each token its experts and their weights ``[tokens, k]`` → ``[tokens, hidden]``.

        Sums over a token's experts are fp32.
        """
        result = torch.zeros(hidden_states.shape, dtype=torch.float32, device=hidden_states.device)
        for expert in range(len(self.packed["down_proj"])):
            token, place = torch.where(top_k_index == expert)
            if not token.numel():
                continue
            out = self._expert(expert, hidden_states[token]) * top_k_weights[token, place, None]
            result.index_add_(0, token, out.float())  # a token meets an expert once: no two sums race
        return result.to(hidden_states.dtype)

    def _expert(self, expert: int, x: Tensor) -> Tensor:
        first = "gate_up_proj" if self.has_gate else "up_proj"
        wide = self._project(first, expert, x)
        middle = self.kind._apply_gate(self, wide) if self.has_gate else self.act_fn(wide)
        out = self._project("down_proj", expert, middle)
        return self.post_expert_norm(out) if getattr(self, "has_post_expert_norm", False) else out

    def _project(self, name: str, expert: int, x: Tensor) -> Tensor:
        """Rows ``[tokens, in]`` through one expert's weight, its parts put where the parameter has them."""
        linears, rows = self.packed[name][expert], self.rows[name][expert]
        features = sum(linear.out_features for linear in linears)
        if len(linears) == 1:
            out = linears[0](x)
        else:
            out = x.new_empty((x.shape[0], features))
            for linear, (start, stop, step) in zip(linears, rows, strict=True):
                out[:, start:stop:step] = linear(x)
        bias = getattr(self, f"{name}_bias", None)
        return out if bias is None else out + bias[expert]
