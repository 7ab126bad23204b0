"""Rounded inputs as plain transformers computes them, in a process that never imports this package, against ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.activations import ActivationScheme
from compressed_tensors.quantization import QuantizationArgs
from transformers import AutoModelForCausalLM

from compress.api import compress, load
from compress.formats.input_activations import arguments_of, scheme_of
from compress.recipe.recipe import Recipe

_LOAD = """
import json, sys, torch, transformers
transformers.utils.logging.set_verbosity(50)
torch.set_num_threads(1)
tokens = torch.arange(2, 34).view(2, 16) * 7 % 256
for folder, dtype in json.load(sys.stdin):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        torch.save(model(tokens, use_cache=False).logits.float(), folder + "/plain.pt")
assert not any(name.partition(".")[0] in ("compress", "compress_kernels") for name in sys.modules)
"""
TOKENS = torch.arange(2, 34).view(2, 16) * 7 % 256
EIGHT = {"bits": 8, "group_size": "channel"}
CASES: dict[str, dict[str, Any]] = {
    "w8a8": {"quantize": EIGHT, "activations": {}},
    "w8a8 asymmetric": {"quantize": EIGHT, "activations": {"symmetric": False}},
    "w8a8 static": {"quantize": EIGHT, "activations": {"dynamic": False}},
    "w8a8 static asymmetric": {
        "quantize": EIGHT,
        "activations": {"dynamic": False, "symmetric": False, "observer": "mse"},
    },
    "w4a8": {"quantize": {"bits": 4, "group_size": 16}, "activations": {}},
    "w4afp8": {"quantize": {"bits": 4, "group_size": 16}, "activations": {"type": "float"}},
    "fp8 dynamic": {"quantize": {"type": "fp8", "group_size": "channel"}, "activations": {"type": "float"}},
    "fp8 static": {
        "quantize": {"type": "fp8", "group_size": "tensor"},
        "activations": {
            "type": "float",
            "dynamic": False,
            "observer": {"name": "percentile", "percentile": 99.9},
        },
    },
    "mxfp8": {
        "quantize": {"type": "mxfp8"},
        "activations": {"type": "float", "strategy": "group", "group_size": 32, "scale_type": "e8m0"},
    },
    "mxfp4": {
        "quantize": {"type": "mxfp4"},
        "activations": {
            "bits": 4,
            "type": "float",
            "strategy": "group",
            "group_size": 32,
            "scale_type": "e8m0",
        },
    },
    "nvfp4": {
        "quantize": {"type": "nvfp4"},
        "activations": {"bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
    },
    "w4afp8 static": {
        "quantize": {"bits": 4, "group_size": 16},
        "activations": {"type": "float", "dynamic": False},
    },
}
HALF = ("mxfp8", "mxfp4", "nvfp4")
"""compressed-tensors decodes these to bf16, and runs them in no other dtype."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> dict[str, Path]:
    """Case → a compressed fp32 model, with the logits of plain transformers beside it. One process loads them all."""
    base = tmp_path_factory.mktemp("rounded")
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    model.save_pretrained(base / "model")
    for file in tiny_model("llama").glob("tokenizer*"):
        (base / "model" / file.name).write_bytes(file.read_bytes())
    made = {}
    for number, (label, step) in enumerate(CASES.items()):
        made[label] = base / str(number)
        recipe = Recipe.parse({"name": "x", "steps": [{**step, "solver": "nearest"}]})
        result = compress(
            base / "model", recipe, made[label], samples=4, length=32, dtype="fp32", device="cpu"
        )
        assert result.plan.format == "compressed-tensors", result.plan.format_reason
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", _LOAD],
        input=json.dumps([(str(made[label]), _dtype_name(label)) for label in made]),
        capture_output=True,
        text=True,
        cwd=base,
        env=environment | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {"dense": base / "model", **made}


def _dtype_name(label: str) -> str:
    return "bfloat16" if label in HALF else "float32"


def logits(folder: Path, label: str) -> torch.Tensor:
    model = load(folder, dtype=getattr(torch, _dtype_name(label)), device="cpu")
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits.float()


@pytest.mark.parametrize("label", CASES)
def test_plain_transformers_gives_our_logits(label: str, folders: dict[str, Path]) -> None:
    ours, theirs = logits(folders[label], label), torch.load(folders[label] / "plain.pt")
    rounding = float((theirs - logits(folders["dense"], label)).norm())
    difference = float((ours - theirs).norm())
    assert rounding > 1e-2
    if CASES[label]["activations"] == {}:
        # compressed-tensors divides by 127.5 where servers divide by 127: another rounding of the same size.
        assert difference < 2 * rounding
    elif label in HALF:
        # bf16 sums in another order move inputs across the wide steps of four bits; the layers themselves are equal.
        assert difference < (0.7 if CASES[label]["activations"].get("bits") == 4 else 0.3) * rounding
    else:
        # Nothing differs but the few inputs at the edge of two codes, which follow the last bit of a sum.
        assert difference < 0.1 * rounding


def test_what_config_json_says(folders: dict[str, Path]) -> None:
    config = json.loads((folders["w8a8 static asymmetric"] / "config.json").read_text())
    (group,) = config["quantization_config"]["config_groups"].values()
    assert group["format"] == "int-quantized"
    assert group["input_activations"] == {
        "num_bits": 8, "type": "int", "symmetric": False, "strategy": "tensor", "group_size": None, "dynamic": False,
    }  # fmt: skip
    config = json.loads((folders["w4a8"] / "config.json").read_text())
    (group,) = config["quantization_config"]["config_groups"].values()
    assert (group["format"], group["input_activations"]["dynamic"]) == ("pack-quantized", True)


@pytest.mark.parametrize(
    "scheme",
    [
        ActivationScheme(),
        ActivationScheme(8, "float", strategy="tensor", dynamic=False),
        ActivationScheme(8, "float", strategy="group", group_size=128),
        ActivationScheme(4, "float", strategy="group", group_size=32, scale_type="e8m0"),
        ActivationScheme(4, "float", strategy="tensor_group", group_size=16),
        ActivationScheme(8, "float", strategy="attn_head", dynamic=False),
    ],
    ids=lambda scheme: scheme.label,
)
def test_the_arguments_are_what_compressed_tensors_takes(scheme: ActivationScheme) -> None:
    arguments = arguments_of(scheme)
    theirs = QuantizationArgs(**arguments)
    assert (theirs.num_bits, theirs.strategy, theirs.group_size) == (
        scheme.bits,
        scheme.strategy,
        scheme.group_size,
    )
    assert scheme_of(arguments) == scheme
    assert scheme_of(theirs.model_dump(mode="json")) == scheme


def test_no_arguments_round_nothing() -> None:
    assert scheme_of(None) is None
