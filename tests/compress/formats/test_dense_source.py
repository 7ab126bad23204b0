"""Quantized checkpoints as sources of a run: planned, compressed, verified, and right as transformers reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from compress import api
from compress.assets import embedded_model
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.formats.dense_source import dense_source, open_any, open_dense, stays_packed
from compress.models.materialize import load_dense
from compress.models.skeleton import open_skeleton
from compress.recipe.recipe import Recipe

TinyModel = Callable[..., Path]
TOKENS = torch.arange(2, 26).unsqueeze(0)
ROUND: dict[str, Any] = {
    "name": "round",
    "format": "auto",
    "steps": [{"targets": ["linear"], "quantize": {"bits": 8, "group_size": 32}, "solver": "nearest"}],
}


def rewrite(
    folder: Path, out: Path, change: Callable[[str, Tensor], dict[str, Tensor]], **config: Any
) -> Path:
    """A copy of a checkpoint with other tensors and settings."""
    out.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            (out / file.name).write_bytes(file.read_bytes())
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors |= {key: value.contiguous() for key, value in change(name, tensor).items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), **config})
    )
    return out


def to_float8(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if "proj" not in name:
        return {name: tensor}
    tiles = tensor.float().unflatten(0, (-1, 32)).unflatten(2, (-1, 32))
    scale = tiles.abs().amax((1, 3)) / 448
    codes = (tiles / scale[:, None, :, None]).flatten(2).flatten(0, 1).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale_inv": scale}


@pytest.fixture(scope="module")
def float8(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
    out = tmp_path_factory.mktemp("float8") / "model"
    return rewrite(tiny_model("qwen3"), out, to_float8, quantization_config=config)


def logits(folder: Path, **options: Any) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    model = model if getattr(model, "is_quantized", False) else model.float()
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits.float()
    return found


def ours(folder: Path) -> Tensor:
    with torch.no_grad():
        found: Tensor = load_dense(open_dense(folder), torch.float32)(TOKENS).logits
    return found


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_float8_computes_as_transformers_reads_it(float8: Path) -> None:
    assert relative(ours(float8), logits(float8)) < 5e-3  # transformers decodes to bf16, then to fp32


def test_a_run_over_a_quantized_source(float8: Path, tmp_path: Path) -> None:
    """The whole way: planned, compressed, verified; the output says nothing of FP8 and transformers reads it."""
    recipe = Recipe.parse(ROUND)
    planned = api.plan(float8, recipe)
    assert planned.source_form.startswith("FP8")
    assert all("scale_inv" not in name for name in planned.passed_through)
    out = tmp_path / "out"
    result = api.compress(float8, recipe, out, device="cpu")
    assert result.report.source.stored_as == planned.source_form
    assert any("quantized already" in note for note in result.report.notes)
    assert planned.total_bytes == sum(file.stat().st_size for file in out.glob("*.safetensors"))
    assert api.verify(out, float8).packed == 14
    assert relative(logits(out), logits(float8)) < 3e-2
    assert relative(api.load(out, dtype=torch.float32, device="cpu")(TOKENS).logits, logits(float8)) < 2e-2


def test_a_quantized_checkpoint_runs_as_it_is(float8: Path) -> None:
    model = api.load(float8, dtype=torch.float32, device="cpu")
    assert relative(model(TOKENS).logits, logits(float8)) < 5e-3
    assert not stays_packed(open_source(float8))


def test_mxfp4_experts(tiny_model: TinyModel, tmp_path: Path) -> None:
    def pack(name: str, tensor: Tensor) -> dict[str, Tensor]:
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            return {name: tensor}
        experts, inputs, outputs = tensor.shape
        generator = torch.Generator().manual_seed(len(name))
        shape = (experts, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(118, 123, shape, dtype=torch.uint8, generator=generator)
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}

    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    folder = rewrite(tiny_model("gpt_oss"), tmp_path / "mxfp4", pack, quantization_config=config)
    assert relative(ours(folder), logits(folder)) < 5e-3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_as_transformers_writes_it(
    tiny_model: TinyModel, tmp_path: Path, family: str, bits: int
) -> None:
    """GPT-2 keeps its weights the other way round than bitsandbytes does."""
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    settings = BitsAndBytesConfig(**(four if bits == 4 else {"load_in_8bit": True}))
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model(family), quantization_config=settings, dtype=torch.float32, device_map="cpu"
    )
    model.save_pretrained(tmp_path / "bnb")
    dense = dense_source(open_source(tmp_path / "bnb"))
    original = open_source(tiny_model(family))
    assert {n: i.shape for n, i in dense.headers.items()} == {n: i.shape for n, i in original.headers.items()}
    for name, info in dense.headers.items():
        if info.decode is not None:
            assert relative(dense.read(name).float(), original.read(name).float()) < (
                0.15 if bits == 4 else 0.02
            )
    open_skeleton(dense)


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama_tied", ["linear", "embeddings"]),
        ("gpt2", ["linear"]),
        ("gpt_oss", ["linear", "experts"]),
        ("phi3", ["linear"]),
    ],
)
def test_our_own_native_form(tiny_model: TinyModel, tmp_path: Path, family: str, targets: list[str]) -> None:
    """As a source it is what `load` makes of it, whatever weights share a tensor or lie the other way round."""
    steps = [{"targets": targets, "quantize": {"bits": 8, "group_size": 32}, "solver": "nearest"}]
    recipe = Recipe.parse({"name": "native", "format": "native", "steps": steps})
    out = tmp_path / "native"
    api.compress(tiny_model(family), recipe, out, device="cpu")
    dense, original = open_dense(out), open_source(tiny_model(family))
    assert {n: i.shape for n, i in dense.headers.items()} == {n: i.shape for n, i in original.headers.items()}
    expected = api.load(out, dtype=torch.float32, device="cpu")(TOKENS).logits
    assert relative(ours(out), expected) < 5e-3
    assert not {"compress.json", "report.html"} & {file.name for file in dense.extra_files()}
    assert stays_packed(open_source(out))


def test_dense_sources_are_themselves(tiny_model: TinyModel) -> None:
    source = open_source(tiny_model("llama"))
    assert dense_source(source) is source


def test_codes_that_nothing_explains_are_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    """FP8 without a word in config.json, a scale that nobody reads, integers in the place of a weight."""

    def bare(name: str, tensor: Tensor) -> dict[str, Tensor]:
        return {name: tensor.to(torch.float8_e4m3fn)} if "q_proj" in name else {name: tensor}

    def scaled(name: str, tensor: Tensor) -> dict[str, Tensor]:
        more = {f"{name}_scale": torch.ones(1)} if "q_proj" in name else {}
        return {name: tensor, **more}

    def integers(name: str, tensor: Tensor) -> dict[str, Tensor]:
        return {name: tensor.to(torch.int8)} if "q_proj" in name else {name: tensor}

    cases = {
        "is float8_e4m3fn": bare,
        "weight_scale belongs to a quantized weight": scaled,
        "is int8 where": integers,
    }
    for number, (sentence, change) in enumerate(cases.items()):
        folder = rewrite(tiny_model("llama"), tmp_path / str(number), change)
        for call in (lambda f=folder: api.plan(f, "w8"), lambda f=folder: api.load(f)):
            with pytest.raises(UserError, match=sentence) as caught:
                call()
            assert "\n" not in str(caught.value)


def test_an_unread_scale_beside_a_declared_quantization(float8: Path, tmp_path: Path) -> None:
    """What the reader does not take is not taken for nothing."""

    def more(name: str, tensor: Tensor) -> dict[str, Tensor]:
        return {
            name: tensor,
            **({f"{name}_scale_2": torch.ones(1)} if name.endswith("q_proj.weight") else {}),
        }

    config = json.loads((float8 / "config.json").read_text())
    folder = rewrite(float8, tmp_path / "more", more, **config)
    with pytest.raises(UserError, match="weight_scale_2 belongs to a quantized weight"):
        api.plan(folder, "w8")


def test_the_model_that_ships_by_its_name() -> None:
    assert open_any("embedded").path == open_dense("embedded").path == embedded_model()
