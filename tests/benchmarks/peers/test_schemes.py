"""Peers by scheme: what each is asked for, the divergence, and the table's shares of the best peer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.peers.environments import PEERS
from benchmarks.peers.runners.divergence import divergence
from benchmarks.peers.schemes import SCHEMES, Setup, entries, schemes_table
from compress import Recipe


def test_every_scheme_has_a_recipe_and_its_peers(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "embedded", 4, 32, 64, tmp_path, 0)
    for name, scheme in SCHEMES.items():
        assert Recipe.load(scheme.recipe).name == scheme.recipe
        found = entries(name, scheme, setup, list(PEERS))
        assert {tool for tool, _, _ in found} <= PEERS.keys()
        assert ("modelopt" in {tool for tool, _, _ in found}) == bool(scheme.modelopt)
    asked = {
        (tool, method): options
        for tool, method, options in entries("W4A8", SCHEMES["W4A8"], setup, ["autoround", "llmcompressor"])
    }
    assert asked["llmcompressor", "gptq"]["group"] == 64
    assert asked["autoround", "rtn"]["scheme"]["group_size"] == 64
    assert ("llmcompressor", "smoothquant-gptq") in asked


def test_divergence_by_hand(tmp_path: Path) -> None:
    ids = np.zeros((1, 2), dtype=np.int64)
    dense = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]).log().numpy()
    logits = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])
    np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "dense.npy", dense)

    def model(**inputs: Any) -> Any:
        return SimpleNamespace(logits=logits)

    found = divergence(model, str(tmp_path / "ids.npy"), str(tmp_path / "dense.npy"))
    q = torch.tensor([1.0, 0.0]).softmax(0)
    second = 0.25 * (torch.tensor(0.25) / q[0]).log() + 0.75 * (torch.tensor(0.75) / q[1]).log()
    assert abs(found["kl"] - float(second) / 2) < 1e-6
    assert found["top1"] == 0.5


def test_ours_is_held_against_the_best_peer() -> None:
    rows: list[dict[str, Any]] = [
        {"scheme": "W8A8", "tool": "compress", "method": "w8a8", "kl": 0.3, "top1": 0.9},
        {"scheme": "W8A8", "tool": "llmcompressor", "method": "rtn", "kl": 0.6, "top1": 0.8},
        {"scheme": "W8A8", "tool": "modelopt", "method": "ptq", "kl": 0.4, "top1": 0.8},
        {"scheme": "W8A8", "tool": "autoround", "method": "rtn", "error": "no | room"},
    ]
    text = schemes_table(rows)
    assert "0.75" in text
    assert "fails: no / room" in text
