"""A rounded key-value cache as plain transformers computes it, in a process that never imports this package, against ours."""

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
from compress_kernels.activations import ActivationScheme, fake_quantize
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.api import compress, load
from compress.calibrate.corpus import load_corpus
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.planning.make import make_plan
from compress.recipe.recipe import Recipe
from compress.text.tokenize import load_tokenizer
from compress.verification.checkpoint import verify

_LOAD = """
import json, sys, torch, transformers
transformers.utils.logging.set_verbosity(50)
torch.set_num_threads(1)
tokens = torch.arange(2, 82).view(2, 40) * 7 % 256
for folder in json.load(sys.stdin):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.save(model(tokens, use_cache=False).logits, folder + "/plain.pt")
assert not any(name.partition(".")[0] in ("compress", "compress_kernels") for name in sys.modules)
"""
TOKENS = torch.arange(2, 82).view(2, 40) * 7 % 256
STEP = {"quantize": {"bits": 8, "group_size": "channel"}, "solver": "nearest"}
RUN: dict[str, Any] = {"samples": 4, "length": 32, "dtype": "fp32", "device": "cpu"}
CASES: dict[str, dict[str, Any]] = {
    "fp8": {},
    "fp8 by head": {"strategy": "attn_head"},
    "int8": {"type": "int"},
    "int8 by head": {"type": "int", "strategy": "attn_head", "observer": "mse"},
}


def recipe(cache: dict[str, Any] | None, step: dict[str, Any] = STEP) -> Recipe:
    cached = {} if cache is None else {"kv_cache": cache}
    return Recipe.parse({"name": "x", "steps": [step], **cached})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32).save_pretrained(folder)
    for file in tiny_model("llama").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Path]:
    """Case → a checkpoint, with the logits of plain transformers beside it. One process loads them all."""
    base = tmp_path_factory.mktemp("caches")
    made = {}
    for number, (label, cache) in enumerate(CASES.items()):
        made[label] = base / str(number)
        assert compress(model, recipe(cache), made[label], **RUN).plan.format == "compressed-tensors"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", _LOAD],
        input=json.dumps([str(folder) for folder in made.values()]),
        capture_output=True,
        text=True,
        cwd=base,
        env=environment | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made["none"] = base / "none"
    compress(model, recipe(None), made["none"], **RUN)
    return made


def logits(folder: Path, **options: Any) -> Tensor:
    with torch.no_grad():
        return load(folder, dtype=torch.float32, device="cpu")(
            TOKENS, **{"use_cache": False, **options}
        ).logits


@pytest.mark.parametrize("label", CASES)
def test_plain_transformers_gives_our_logits(label: str, folders: dict[str, Path]) -> None:
    ours, theirs = logits(folders[label]), torch.load(folders[label] / "plain.pt")
    rounding = float((ours - logits(folders["none"])).norm())
    assert rounding > 1e-2
    assert float((ours - theirs).norm()) < 0.05 * rounding


@pytest.mark.parametrize("label", ["fp8", "int8 by head"])
def test_a_filled_cache_gives_the_same(label: str, folders: dict[str, Path]) -> None:
    model = load(folders[label], dtype=torch.float32, device="cpu")
    with torch.no_grad():
        whole = model(TOKENS, use_cache=False).logits
        first = model(TOKENS[:, :20], use_cache=True)
        rest = model(TOKENS[:, 20:], past_key_values=first.past_key_values, use_cache=True).logits
    assert torch.allclose(rest, whole[:, 20:], atol=1e-4)
    stored = first.past_key_values.layers[0].keys
    scale = open_source(folders[label]).read("model.layers.0.self_attn.k_scale")
    kind = "float" if label == "fp8" else "int"
    scheme = ActivationScheme(8, kind, strategy="tensor", dynamic=False)  # type: ignore[arg-type]
    assert torch.allclose(fake_quantize(stored, scheme, scale), stored, atol=1e-6)


def test_scales_span_the_keys_after_their_position(folders: dict[str, Path], model: Path) -> None:
    """A second way to the keys: those of a cache that the dense model fills."""
    written = open_source(folders["fp8"])
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokens = load_corpus("embedded", load_tokenizer(model), samples=4, length=32, seed=0).tokens
    with torch.no_grad():
        cache = plain(tokens, use_cache=True).past_key_values
    keys, values = cache.layers[0].keys, cache.layers[0].values
    assert float(written.read("model.layers.0.self_attn.k_scale")) == pytest.approx(
        float(keys.abs().max()) / 448, rel=1e-4
    )
    assert float(written.read("model.layers.0.self_attn.v_scale")) == pytest.approx(
        float(values.abs().max()) / 448, rel=1e-4
    )
    by_head = open_source(folders["fp8 by head"]).read("model.layers.0.self_attn.k_scale")
    assert by_head.shape == (2, 1, 1)
    assert torch.allclose(by_head.flatten(), keys.abs().amax((0, 2, 3)) / 448, rtol=1e-4)


def test_what_config_json_and_the_report_say(folders: dict[str, Path], model: Path) -> None:
    config = json.loads((folders["fp8 by head"] / "config.json").read_text())
    assert config["quantization_config"]["kv_cache_scheme"] == {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": "attn_head", "group_size": None,
        "dynamic": False,
    }  # fmt: skip
    report = json.loads((folders["fp8 by head"] / "compress.json").read_text())
    assert report["plan"]["kv_cache"]["strategy"] == "attn_head"
    verify(folders["fp8 by head"], open_source(model))


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gpt_oss", "gemma3"])
def test_other_families_run_and_reload(family: str, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """In our own form where compressed-tensors does not know the attention."""
    result = compress(tiny_model(family), recipe({}), tmp_path / "out", **RUN)
    assert result.plan.kv_label == "fp8 per tensor, static"
    ours = load(tmp_path / "out", dtype=torch.float32, device="cpu")
    with torch.no_grad():
        expected = ours(TOKENS, use_cache=False).logits
    if result.plan.format == "native":
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        with torch.no_grad():
            assert torch.allclose(theirs(TOKENS, use_cache=False).logits, expected, atol=1e-4)
    compress(tiny_model(family), recipe(None), tmp_path / "none", **RUN)
    assert not torch.allclose(logits(tmp_path / "none"), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        ({"bits": 4}, "kv_cache.bits"),
        ({"strategy": "token"}, "kv_cache.strategy"),
        ({"dynamic": True}, "kv_cache.dynamic"),
        ({"observers": "mse"}, "did you mean 'observer'"),
    ],
)
def test_a_cache_that_no_server_stores(cache: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        recipe(cache)


def test_refused_at_plan_time(tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    with pytest.raises(UserError, match="which a dense checkpoint does not express"):
        make_plan(skeleton, recipe({}), format="dense")
    with pytest.raises(UserError, match="no observer called 'median'"):
        make_plan(skeleton, recipe({"observer": "median"}))
    skeleton.model.config.kv_lora_rank = 16
    with pytest.raises(UserError, match="latent vectors"):
        make_plan(skeleton, recipe({}))
