"""What plain transformers, in a process that never imports this package, makes of the checkpoints that we write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_LOAD = """
import json, sys, torch, transformers
transformers.utils.logging.set_verbosity(50)
torch.set_num_threads(1)
tokens = torch.arange(2, 26).view(2, 12) * 7 % 256

def logits(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    with torch.no_grad():
        return model(tokens).logits.float()

results = {}
for label, (packed, dense) in json.load(sys.stdin).items():
    try:
        expected = logits(dense)
        found = logits(packed)
        results[label] = [float((found - expected).abs().max()), float(expected.abs().max())]
    except Exception as error:
        results[label] = f"{type(error).__name__}: {error}"
assert not any(name.partition(".")[0] in ("compress", "compress_kernels") for name in sys.modules)
print("RESULTS" + json.dumps(results))
"""


@dataclass(frozen=True)
class Case:
    """A model, a recipe's steps, the form that ``auto`` chooses and whether plain transformers loads it."""

    family: str
    steps: tuple[dict[str, Any], ...]
    format: str
    asked: str = "auto"
    loads: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


def _step(bits: int = 4, group: Any = 16, symmetric: bool = True, **others: Any) -> dict[str, Any]:
    return {"quantize": {"bits": bits, "group_size": group, "symmetric": symmetric}, **others}


def _weights_alone(step: dict[str, Any]) -> dict[str, Any]:
    """A dense checkpoint does not say that inputs are rounded."""
    return {key: value for key, value in step.items() if key != "activations"}


def _floats(kind: str, **others: Any) -> dict[str, Any]:
    size = {"group_size": others.pop("group")} if "group" in others else {}
    return {"quantize": {"type": kind, **size}, **others}


_CT, _OWN = "compressed-tensors", "native"
_DOWN = ("re:.*down_proj",)
CASES = {
    "symmetric": Case("llama", (_step(),), _CT),
    "asymmetric": Case("llama", (_step(symmetric=False),), _CT),
    "3 bits": Case("llama", (_step(3, symmetric=False),), _CT),
    "channel": Case("qwen3", (_step(8, "channel"),), _CT),
    "tensor": Case("llama", (_step(8, "tensor", False),), _CT),
    "mixed": Case("llama", (_step(), _step(8, targets=_DOWN)), _CT),
    "some ignored": Case("gemma3", (_step(ignore=_DOWN),), _CT),
    "tied head": Case("llama_tied", (_step(ignore=("lm_head",)),), _CT),
    "head": Case("llama", (_step(targets=("linear", "lm_head")),), _CT),
    "fused": Case("phi3", (_step(),), _CT),
    "qwen experts": Case("qwen3_moe", (_step(),), _CT),
    "mixtral experts": Case("mixtral", (_step(3),), _CT),
    "mixed experts": Case("mixtral", (_step(), _step(8, symmetric=False, targets=("linear",))), _CT),
    "experts alone": Case("qwen3_moe", (_step(targets=("experts",)),), _CT),
    "mixed asymmetric": Case("llama", (_step(symmetric=False), _step(8, targets=_DOWN)), _OWN, loads=False),
    "asymmetric experts": Case("qwen3_moe", (_step(symmetric=False),), _OWN, loads=False),
    "dense experts": Case("mixtral", (_step(targets=("linear",)),), _OWN, loads=False),
    "gpt-oss": Case("gpt_oss", (_step(),), _OWN, loads=False),
    "conv1d": Case("gpt2", (_step(),), _OWN, loads=False),
    "embeddings": Case("llama", (_step(targets=("linear", "embeddings", "head")),), _CT),
    "head of its own bits": Case("llama", (_step(), _step(8, targets=("head",))), _CT),
    "embeddings of their own bits": Case(
        "llama", (_step(), _step(8, targets=("embeddings",))), _OWN, loads=False
    ),
    "tied embeddings": Case("llama_tied", (_step(targets=("linear", "embeddings")),), _OWN, loads=False),
    "native": Case("llama", (_step(),), _OWN, asked="native", loads=False),
    "native int8": Case("llama", (_step(8, "channel", activations={}),), _OWN, asked="native", loads=False),
    "int8": Case("llama", (_step(8, "channel", activations={}),), _CT),
    "nvfp4": Case("llama", (_floats("nvfp4"),), _CT),
    "mxfp4": Case("llama", (_floats("mxfp4"),), _CT),
    "mxfp8": Case("qwen3", (_floats("mxfp8"),), _CT),
    "fp8 by channel": Case("llama", (_floats("fp8"),), _CT),
    "fp8 by tensor": Case("llama", (_floats("fp8", group="tensor"),), _CT),
    "fp8 by block": Case(
        "llama", (_floats("fp8", group="block"),), _CT, settings={"hidden_size": 128, "head_dim": 32}
    ),
    "floats and integers": Case("llama", (_floats("nvfp4"), _step(8, targets=_DOWN)), _CT),
    "nvfp4 experts": Case("qwen3_moe", (_floats("nvfp4"),), _OWN, loads=False),
    "mxfp4 experts": Case("mixtral", (_floats("mxfp4"),), _CT),
    "mxfp8 experts": Case("mixtral", (_floats("mxfp8"),), _OWN, loads=False),
    "fp8 experts": Case("qwen3_moe", (_floats("fp8"),), _CT),
    "float embeddings": Case("llama_tied", (_floats("nvfp4", targets=("embeddings",)),), _OWN, loads=False),
}


@pytest.fixture(scope="module")
def reloaded(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Any],
    write_rounded: Callable[..., Any],
) -> dict[str, Any]:
    """Case → (the form written, what came of loading it beside its dense twin). One process loads them all."""
    folder = tmp_path_factory.mktemp("reload")
    formats, pairs = {}, {}
    for label, case in CASES.items():
        model, recipe = tiny_model(case.family, **case.settings), make_recipe(*case.steps)
        packed = write_rounded(model, folder / label, recipe, format=case.asked)
        plain = make_recipe(*map(_weights_alone, case.steps))
        write_rounded(model, folder / f"{label} dense", plain, format="dense")
        formats[label] = packed.plan.format
        pairs[label] = [str(folder / label), str(folder / f"{label} dense")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", _LOAD],
        input=json.dumps(pairs),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.partition("RESULTS")[2])
    return {label: (formats[label], results[label]) for label in CASES}


@pytest.mark.parametrize("label", CASES)
def test_auto_takes_the_widest_form_that_fits(label: str, reloaded: dict[str, Any]) -> None:
    assert reloaded[label][0] == CASES[label].format


@pytest.mark.parametrize("label", [label for label, case in CASES.items() if case.loads and label != "int8"])
def test_plain_transformers_gives_the_logits_of_the_dequantized_model(
    label: str, reloaded: dict[str, Any]
) -> None:
    difference, size = reloaded[label][1]
    assert size > 0
    assert difference == 0


def test_with_rounded_activations_the_logits_are_near(reloaded: dict[str, Any]) -> None:
    difference, size = reloaded["int8"][1]
    assert 0 < difference < 0.05 * size


@pytest.mark.parametrize("label", [label for label, case in CASES.items() if not case.loads])
def test_our_own_form_is_never_taken_for_a_model_with_random_weights(
    label: str, reloaded: dict[str, Any]
) -> None:
    assert "ignore_mismatched_sizes" in reloaded[label][1]
