"""Vision-language models: the language tower is compressed, the rest passes through or is targeted by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.zoo.vision_language import SETTINGS, build_vision_language
from compress import api
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.architecture import predicts_next_token
from compress.models.skeleton import open_skeleton
from compress.models.towers import beside_decoder, decoder_name, find_blocks
from compress.recipe.recipe import Recipe

TOKENS = torch.arange(2, 34).unsqueeze(0)
PLAIN = """
import json, sys, torch, transformers
from safetensors.torch import save_file
assert "compress" not in sys.modules
tokens = torch.arange(2, 34).unsqueeze(0)
for name, (folder, out) in json.load(open(sys.argv[1])).items():
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    with torch.no_grad():
        save_file({"logits": model(input_ids=tokens).logits.float().contiguous()}, out)
"""


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Callable[[str], Path]:
    """A tiny random vision-language checkpoint with a tokenizer and what processors read, by its name."""
    made: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "model"
            build_vision_language(name).save_pretrained(folder)
            for file in tiny_model("llama").glob("tokenizer*"):
                (folder / file.name).write_bytes(file.read_bytes())
            (folder / "preprocessor_config.json").write_text('{"image_processor_type": "SomeImageProcessor"}')
            (folder / "processor_config.json").write_text('{"processor_class": "SomeProcessor"}')
            made[name] = folder
        return made[name]

    return write


NATIVE = ("qwen3_vl_moe", "mistral4")
"""Fused experts, which compressed-tensors has no name for."""


@pytest.fixture(scope="module")
def compressed(tower: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every model by GPTQ on text."""
    outs = tmp_path_factory.mktemp("compressed")
    settings = {"quantize.group_size": 32}
    for name in SETTINGS:
        options: dict[str, Any] = {"samples": 2, "length": 32, "settings": settings, "device": "cpu"}
        api.compress(tower(name), "w4-gptq", outs / name, **options)
    return {name: outs / name for name in SETTINGS}


@pytest.fixture(scope="module")
def plain(compressed: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Logits by transformers in a process that knows nothing of us."""
    folder = tmp_path_factory.mktemp("plain")
    wanted = {n: (str(path), str(folder / n)) for n, path in compressed.items() if n not in NATIVE}
    (folder / "jobs.json").write_text(json.dumps(wanted))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", PLAIN, str(folder / "jobs.json")]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: load_file(out)["logits"] for name, (_, out) in wanted.items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_language_tower_is_compressed(
    tower: Callable[[str], Path], compressed: dict[str, Path], plain: dict[str, torch.Tensor], name: str
) -> None:
    out, source = compressed[name], open_source(tower(name))
    report = json.loads((out / "compress.json").read_text())
    assert report["format"]["name"] == ("native" if name in NATIVE else "compressed-tensors")
    packed = {source for w in report["plan"]["weights"].values() for source in w["sources"]}
    written = open_source(out)
    beside = [
        n for n in source.headers if "vision" in n or "visual" in n or "projector" in n or "connector" in n
    ]
    assert beside
    assert not packed.intersection(beside)
    assert all(torch.equal(written.read(n), source.read(n)) for n in beside)
    for file in ("preprocessor_config.json", "processor_config.json"):
        assert (out / file).read_bytes() == (tower(name) / file).read_bytes()
    with torch.no_grad():
        dense = build_vision_language(name)(input_ids=TOKENS).logits
        ours = api.load(out, device="cpu")(input_ids=TOKENS).logits.float()
    assert 0 < float((ours - dense).norm() / dense.norm()) < 0.4
    if name not in NATIVE:
        torch.testing.assert_close(ours, plain[name], rtol=1e-4, atol=1e-5)


def test_the_vision_tower_can_be_targeted(tower: Callable[[str], Path], tmp_path: Path) -> None:
    """By a step of its own without data; a step that needs data says what to do."""
    eight = {"targets": ["vision"], "quantize": {"bits": 8, "group_size": 16}, "solver": "nearest"}
    linear = {"targets": ["linear"], "quantize": {"bits": 8, "group_size": 16}, "solver": "nearest"}
    out = tmp_path / "out"
    result = api.compress(
        tower("llava"), Recipe.parse({"name": "v", "steps": [linear, eight]}), out, device="cpu"
    )
    kinds = [weight.view.kind for weight in result.plan.weights]
    assert (kinds.count("vision"), kinds.count("linear")) == (20, 14)
    with torch.no_grad():
        pixels = torch.randn(1, 3, 32, 32)
        tokens = torch.cat([torch.full((1, 16), 250), TOKENS], 1)
        dense = build_vision_language("llava")(input_ids=tokens, pixel_values=pixels).logits
        ours = api.load(out, device="cpu")(input_ids=tokens, pixel_values=pixels).logits
    assert 0 < float((ours - dense).norm() / dense.norm()) < 0.02
    data = {**eight, "solver": "gptq"}
    with pytest.raises(UserError, match="lies outside the decoder blocks.*needs no data"):
        api.plan(tower("llava"), Recipe.parse({"name": "v", "steps": [data]}))


def test_a_tower_larger_than_the_decoder_is_not_taken_for_it() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
            self.projector = nn.Linear(4, 4)
            self.language_model = Decoder()

        def get_decoder(self) -> nn.Module:
            return self.language_model

        def forward(self, input_ids: Any, pixel_values: Any) -> None:
            """Never run."""

    model = Model()
    assert decoder_name(model) == "language_model"
    assert find_blocks(model) == ["language_model.layers.0", "language_model.layers.1"]
    assert beside_decoder(model) == {"tower", "tower.0", "tower.1", "tower.2", "tower.3", "projector"}


def test_language_models_have_nothing_beside_their_decoder(tiny_model: Callable[..., Path]) -> None:
    for family in ("llama", "gpt2", "opt", "gpt_neox"):
        skeleton = open_skeleton(open_source(tiny_model(family)))
        assert not beside_decoder(skeleton.model)
        assert {view.kind for view in skeleton.views} <= {"linear", "conv1d", "embedding", "head"}


def renamed(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors.items():
        turned = "experts" in name and name.endswith(("gate_up_proj", "down_proj"))
        yield name, (tensor.transpose(1, 2) if turned else tensor).contiguous()


def test_experts_that_lie_the_other_way_round_on_disk(tower: Callable[[str], Path], tmp_path: Path) -> None:
    """transformers turns such tensors when their shape is not the parameter's; so do we."""
    folder = tmp_path / "turned"
    folder.mkdir()
    for file in tower("qwen3_vl_moe").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = dict(renamed(load_file(folder / "model.safetensors")))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    first, second = (open_skeleton(open_source(path)) for path in (tower("qwen3_vl_moe"), folder))
    assert [view.name for view in first.views] == [view.name for view in second.views]
    for skeleton in (first, second):
        skeleton.load_block(0, device="cpu", dtype=torch.float32)
        assert predicts_next_token(skeleton.model)
    for view in first.block_views(0):
        assert torch.equal(view.get(first.parameter_of(view)), view.get(second.parameter_of(view))), view.name
