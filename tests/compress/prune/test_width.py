"""Narrower models: plain configurations that load anywhere, and the same function as the wide one with zeros."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress.api import compress, load, plan, verify
from compress.errors import UserError
from compress.linalg.eliminate import eliminate, elimination_losses
from compress.recipe.recipe import Recipe


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("A block that is narrower makes a smaller model. " * 100, encoding="utf-8")
    return path


def recipe(**changes: Any) -> Recipe:
    return Recipe.parse({"name": "test", "calibrate": {"samples": 4, "length": 24}, **changes})


CASES: dict[str, tuple[str, dict[str, float], dict[str, int]]] = {
    "llama": (
        "llama",
        {"neurons": 0.75, "groups": 0.5},
        {"intermediate_size": 96, "num_key_value_heads": 1, "num_attention_heads": 2, "head_dim": 16},
    ),
    "transposed": ("gpt2", {"neurons": 0.5}, {"n_inner": 128}),
    "with sinks": ("gpt_oss", {"groups": 0.5}, {"num_key_value_heads": 1, "num_attention_heads": 2}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_plain_smaller_model(
    tiny_model: Callable[..., Path], tmp_path: Path, text: Path, case: str
) -> None:
    family, wanted, settings = CASES[case]
    source, chosen = tiny_model(family), recipe(width_pruning=wanted)
    result = compress(source, chosen, tmp_path / "out", data=str(text), device="cpu", dtype="fp32")
    assert result.report.bytes.planned == result.report.bytes.actual
    verify(tmp_path / "out", source)
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert {name: getattr(small.config, name) for name in settings} == settings
    wide = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    before = sum(parameter.numel() for parameter in wide.parameters())
    assert sum(parameter.numel() for parameter in small.parameters()) < before
    ids = torch.arange(2, 26).unsqueeze(0)
    with torch.no_grad():
        near = small(ids).logits.log_softmax(-1)
        far = torch.zeros_like(near).log_softmax(-1)
        dense = wide.eval()(ids).logits.log_softmax(-1)
    error = [float((dense.exp() * (dense - other)).sum(-1).mean()) for other in (near, far)]
    assert error[0] < error[1]


@pytest.fixture(scope="module")
def half(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    out = tmp_path_factory.mktemp("half") / "out"
    compress(tiny_model("llama"), recipe(width_pruning={"neurons": 0.5}), out, data=str(text), device="cpu")
    return out


def test_what_stays_is_the_source(tiny_model: Callable[..., Path], half: Path, text: Path) -> None:
    source = tiny_model("llama")
    small, wide = (load_file(folder / "model.safetensors") for folder in (half, source))
    name = "model.layers.1.mlp.{}.weight"
    up, gate, down = (small[name.format(weight)] for weight in ("up_proj", "gate_proj", "down_proj"))
    rows = [wide[name.format("up_proj")].tolist().index(row.tolist()) for row in up]
    assert rows == sorted(rows)
    assert torch.equal(gate, wide[name.format("gate_proj")][rows])
    assert down.shape == (64, 64)
    assert not torch.equal(down, wide[name.format("down_proj")][:, rows])
    planned = plan(source, recipe(width_pruning={"neurons": 0.5}), data=str(text))
    assert planned.total_bytes == (half / "model.safetensors").stat().st_size


def test_narrow_then_quantized(tiny_model: Callable[..., Path], tmp_path: Path, text: Path) -> None:
    source = tiny_model("llama")
    chosen = recipe(
        width_pruning={"neurons": 0.5},
        steps=[{"quantize": {"bits": 4, "group_size": 32}, "solver": "nearest"}],
    )
    compress(source, chosen, tmp_path / "out", data=str(text), device="cpu")
    assert verify(tmp_path / "out", source).packed == 14
    load(tmp_path / "out", device="cpu")


def test_what_was_changed_is_found(tiny_model: Callable[..., Path], tmp_path: Path, half: Path) -> None:
    with pytest.raises(UserError, match="another model"):
        verify(half, tiny_model("llama", num_hidden_layers=3))
    copy = tmp_path / "copy"
    shutil.copytree(half, copy)
    report = json.loads((copy / "compress.json").read_text())
    kept = report["plan"]["width_pruned"]["kept"]["neurons"]
    kept[0], kept[1] = kept[1], kept[0]
    (copy / "compress.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="not what it is in the source"):
        verify(copy, tiny_model("llama"))


@pytest.mark.parametrize(
    ("family", "wanted", "message"),
    [
        ("gpt2", {"groups": 0.5}, "groups"),
        ("phi3", {"neurons": 0.5}, "stored together"),
        ("phi3", {"groups": 0.5}, "stored together"),
        ("mixtral", {"neurons": 0.5}, "stored together"),
    ],
)
def test_refusals(
    tiny_model: Callable[..., Path], text: Path, family: str, wanted: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan(tiny_model(family), recipe(width_pruning=wanted), data=str(text))


@pytest.mark.parametrize("wanted", [{}, {"neurons": 0.0}, {"neurons": 1.5}, {"groups": -1}, {"heads": 0.5}])
def test_mistakes(wanted: dict[str, float]) -> None:
    with pytest.raises(UserError, match="width_pruning"):
        recipe(width_pruning=wanted)


@pytest.fixture(scope="module")
def uneven(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """Two blocks of which the second hardly matters."""
    source = tmp_path_factory.mktemp("lopsided") / "model"
    shutil.copytree(tiny_model("llama"), source)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1e-3
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    out = tmp_path_factory.mktemp("uneven") / "out"
    wanted = {"neurons": 0.5, "groups": 0.5, "allocate": "fisher"}
    compress(source, recipe(width_pruning=wanted), out, data=str(text), device="cpu", dtype="fp32")
    return out


def widths(model: Any) -> list[int]:
    return [layer.mlp.up_proj.weight.shape[0] for layer in model.model.layers]


def test_blocks_of_unequal_widths(uneven: Path) -> None:
    ours = load(uneven, dtype=torch.float32, device="cpu")
    assert widths(ours)[0] > widths(ours)[1]
    assert sum(widths(ours)) <= 128
    assert all(width % 8 == 0 for width in widths(ours))
    theirs = AutoModelForCausalLM.from_pretrained(uneven, dtype=torch.float32).eval()
    assert widths(theirs) == widths(ours)
    ids = torch.arange(2, 26).unsqueeze(0)
    with torch.no_grad():
        assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-5)
        assert theirs.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 27)


def test_unequal_widths_are_in_no_setting(uneven: Path) -> None:
    config = json.loads((uneven / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compress"
    assert config["num_key_value_heads"] == 1
    assert config["intermediate_size"] == 128


def test_unequal_widths_fail_loudly_without_us(uneven: Path) -> None:
    code = (
        "import sys; from transformers import AutoModelForCausalLM as A\n"
        f"A.from_pretrained({str(uneven)!r}); assert 'compress' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "mismatch" in done.stderr


def test_unequal_widths_then_packed(tiny_model: Callable[..., Path], tmp_path: Path, text: Path) -> None:
    step = {"quantize": {"bits": 4, "group_size": 8, "symmetric": True}}
    chosen = recipe(
        width_pruning={"neurons": 0.5, "allocate": "fisher"}, steps=[step], allow_split_groups=True
    )
    source, out = tiny_model("llama"), tmp_path / "out"
    result = compress(source, chosen, out, data=str(text), device="cpu", dtype="fp32")
    assert result.report.bytes.planned == result.report.bytes.actual
    verify(out, source)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        assert bool(torch.isfinite(model(torch.arange(2, 26).unsqueeze(0)).logits).all())
    with pytest.raises(UserError, match="unequal widths"):
        compress(source, chosen, tmp_path / "dense", data=str(text), device="cpu", format="dense")
    assert not (tmp_path / "dense").exists()


def test_losses_of_elimination_are_those_of_a_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 24, generator=generator)
    inputs = torch.randn(96, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    gram = inputs.T @ inputs / 96
    losses = elimination_losses(weight, gram, torch.arange(24).unsqueeze(1), [20, 12, 5])
    assert list(losses) == [20, 12, 5]
    assert list(losses.values()) == sorted(losses.values())
    whole = float((weight.double() @ gram.double() * weight).sum())
    direct = eliminate(weight, gram, torch.arange(24).unsqueeze(1), 5)
    assert losses[5] / whole == pytest.approx(direct.error, rel=0.35)
    # Where both let the same units go, one at a time, the losses are the fit's.
    one_by_one = elimination_losses(weight, gram, torch.arange(24).unsqueeze(1), [23, 22, 21])
    direct = eliminate(weight, gram, torch.arange(24).unsqueeze(1), 21)
    assert one_by_one[21] / whole == pytest.approx(direct.error, rel=1e-3)


@pytest.mark.parametrize("name", ["prune-width75", "prune-width75-fisher"])
def test_the_shipped_recipes(tiny_model: Callable[..., Path], tmp_path: Path, text: Path, name: str) -> None:
    source, out = tiny_model("llama"), tmp_path / "out"
    compress(source, name, out, data=str(text), samples=4, length=24, device="cpu")
    verify(out, source)
    assert sum(widths(load(out, device="cpu"))) <= 0.75 * 256


def test_a_block_without_gradients_is_told(
    tiny_model: Callable[..., Path], tmp_path: Path, text: Path
) -> None:
    source = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), source)
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"].zero_()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    wanted = recipe(width_pruning={"neurons": 0.5, "allocate": "fisher"})
    with pytest.raises(UserError, match="no gradient reaches"):
        compress(source, wanted, tmp_path / "out", data=str(text), device="cpu")
    assert not (tmp_path / "out").exists()


def test_shapes_that_cannot_be(uneven: Path, tmp_path: Path) -> None:
    for shapes, message in (
        ({"model.layers.9.mlp.up_proj.weight": [8, 64]}, "does not have"),
        ({"model.layers.0.mlp.up_proj.weight": [8]}, "not one of 2 sizes"),
    ):
        damaged = tmp_path / message.replace(" ", "-")
        shutil.copytree(uneven, damaged)
        config = json.loads((damaged / "config.json").read_text())
        (damaged / "config.json").write_text(json.dumps({**config, "compress_shapes": shapes}))
        for opened in (load, AutoModelForCausalLM.from_pretrained):
            with pytest.raises(UserError, match=message):
                opened(damaged)


def test_twins_go_first(tiny_model: Callable[..., Path], tmp_path: Path, text: Path) -> None:
    source = tmp_path / "twins"
    shutil.copytree(tiny_model("llama"), source)
    weights = load_file(source / "model.safetensors")
    for block in range(2):
        for role in ("gate_proj", "up_proj"):
            weight = weights[f"model.layers.{block}.mlp.{role}.weight"]
            weight[5] = weight[90]
        weights[f"model.layers.{block}.mlp.down_proj.weight"][:, 5] *= 0.5
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    chosen = recipe(width_pruning={"neurons": 0.75, "merge": 0.999})
    result = compress(source, chosen, tmp_path / "out", data=str(text), device="cpu", dtype="fp32")
    for bits in result.plan.width_pruned["kept"]["neurons"]:
        assert not int(bits, 16) >> 5 & 1
        assert int(bits, 16) >> 90 & 1
    verify(tmp_path / "out", source)
