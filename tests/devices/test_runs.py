"""Whole runs on a device that is not the CPU: no tensor is forgotten, and the output is that of the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import compress, evaluate, heal, load
from compress.assets import recipes_dir

DEVICE = "standin"
READS_OF_A_STEP = 5
"""Transfers and reads of the loss, the squared gradient, and whether logits are infinite; not one for every tensor."""
FEW = ("lowrank80-svdllm", "prune-width75", "fp8-dynamic", "w4-gptq", "by-gradient")
ALL = "COMPRESS_TESTS_STANDIN_ALL"
"""Set where every shipped recipe is to run, which takes an hour (``make standin``)."""
SHIPPED = sorted(path.stem for path in recipes_dir().glob("*.yaml"))
RECIPES = [*FEW, *(name for name in SHIPPED if os.environ.get(ALL) and name not in FEW)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog " * 40)
    return path


BY_GRADIENT: dict[str, Any] = {
    "name": "by-gradient",
    "true_sequential": True,
    "steps": [
        {
            "targets": ["down_proj"],
            "quantize": {"bits": 4, "group_size": 64, "symmetric": False},
            "score": {"name": "fisher", "tokens": "by_gradient"},
            "true_input_target": True,
            "solver": ["gptq", "group_scales"],
        }
    ],
}
"""As `best-w4`, for few weights and without the solvers that take minutes on this device."""


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_on_the_device(
    tiny_model: Callable[..., Path], text: Path, tmp_path: Path, traffic: Any, name: str
) -> None:
    source = tiny_model("llama")
    settings = {"quantize.group_size": 64} if name == "w4-gptq" else {}
    out = tmp_path / "out"
    compress(
        source,
        BY_GRADIENT if name == "by-gradient" else name,
        out,
        data=str(text),
        samples=2,
        length=16,
        settings=settings,
        device=DEVICE,
        dtype="fp32",
    )
    assert traffic.to_device > 0
    there = load(out, device=DEVICE)
    here = load(out, device="cpu")
    ids = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        expected = here(ids).logits
        got = there(ids.to(DEVICE)).logits
    assert got.device.type == DEVICE
    torch.testing.assert_close(got.cpu().float(), expected.float(), rtol=3e-2, atol=3e-2)


def test_a_model_is_evaluated_and_generates_on_the_device(
    tiny_model: Callable[..., Path], text: Path, tmp_path: Path, traffic: Any
) -> None:
    source, out = tiny_model("llama"), tmp_path / "out"
    compress(source, "w4-rtn", out, settings={"quantize.group_size": 64})
    figures = evaluate(source, [out], text=text, length=16, limit=2, device=DEVICE, speed=False)
    assert figures.candidates[0].kl is not None
    model = load(out, device=DEVICE)
    ids = torch.arange(4).unsqueeze(0).to(DEVICE)
    with torch.no_grad():
        written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    assert written.shape == (1, 7)


@pytest.mark.parametrize("train", [["codes", "scales", "norms"], ["scales", "norms"]])
def test_healing_reads_a_few_numbers_of_the_device_in_a_step(
    tiny_model: Callable[..., Path], text: Path, tmp_path: Path, traffic: Any, train: list[str]
) -> None:
    source, out = tiny_model("llama"), tmp_path / "out"
    grid = {"quantize.group_size": 64}
    compress(source, "w3-gptq", out, data=str(text), samples=2, length=16, settings=grid, device="cpu")
    crossed = []
    for steps in (1, 5):
        before = traffic.reads + traffic.to_host
        heal(
            out,
            source=source,
            data=str(text),
            train=train,
            settings={
                "tokens": 32 * steps,
                "length": 16,
                "batch": 2,
                "holdout": 2,
                "rate": 1e-3,
                "evaluations": 1,
            },
            new=tmp_path / f"healed{steps}",
            device=DEVICE,
        )
        crossed.append(traffic.reads + traffic.to_host - before)
    assert crossed[1] - crossed[0] <= 4 * READS_OF_A_STEP
