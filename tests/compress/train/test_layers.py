"""Layers that learn small: every entry keeps its contract and is its formula, and what is written loads packed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.packed_module import PackedModule
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import compress
from compress.errors import UserError
from compress.planning.methods import build
from compress.recipe import registry
from compress.recipe.section import Method
from compress.train.layers.base import Packed
from compress.train.layers.bits import SignAndBits
from compress.train.layers.block_low_rank import Windows, shrink
from compress.train.layers.latent import Code
from compress.train.layers.shift import SignAndShift
from compress.train.pretrain import TrainSettings, train
from compress.train.sparse import linear_layers

from .test_lost import CONFIG

Tiny = Callable[..., Path]
TOKENS = torch.arange(3, 19).view(2, 8)
FEW: dict[str, Any] = {
    "tokens": 4096,
    "batch": 4,
    "length": 32,
    "held_out": 4,
    "every": 8,
    "rate": 3e-3,
}
PACKED = ("block-low-rank", "bits", "shift")


def entry(name: str, **options: Any) -> Any:
    return build("layers", Method(name=name, options=options))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and every weight is accounted for. " * 120)
    return str(path)


def trained(name: str, steps: int = 12) -> tuple[nn.Module, dict[str, Packed], list[Tensor]]:
    """A short training on tokens that count up: the model, what is packed, and the losses."""
    torch.manual_seed(0)
    model, layers, losses = LlamaForCausalLM(CONFIG), entry(name), []
    layers.begin(model, list(linear_layers(model)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = (torch.arange(16) + torch.arange(8).unsqueeze(1)) % 64
    for step in range(1, steps + 1):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        layers.after_step(step / steps)
        losses.append(loss.detach())
    with torch.no_grad():
        before = model.eval()(TOKENS).logits
    packed = layers.finish(model)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, before, rtol=1e-4, atol=1e-5)
    return model, packed, losses


@pytest.mark.parametrize("name", registry.LAYERS)
def test_a_layer_learns_and_ends_as_it_is_stored(name: str) -> None:
    model, packed, losses = trained(name)
    assert losses[-1] < 0.9 * losses[0]
    assert (name in PACKED) == bool(packed)
    assert all(type(layer) is nn.Linear for layer in linear_layers(model).values())
    for layer, one in packed.items():
        weight = model.get_submodule(layer).weight
        assert torch.equal(one.layout.decode(one.tensors, one.shape, torch.float32), weight)
    again = trained(name)[0].state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_what_is_written_loads_packed_with_equal_logits(
    name: str, family: str, tiny_model: Tiny, text: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = TrainSettings(**FEW, method=name)
    result = train(tiny_model(family), out, data=text, settings=settings, device="cpu")
    assert result.losses[-1][1] < result.losses[0][1]
    ours = compress.load(out, dtype=torch.float32, device="cpu")
    assert sum(isinstance(module, PackedModule) for module in ours.modules()) >= len(linear_layers(ours)) > 0
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        logits = [model.eval()(TOKENS).logits for model in (ours, theirs)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    dense = sum(path.stat().st_size for path in tiny_model(family).glob("*.safetensors"))
    assert sum(path.stat().st_size for path in out.glob("*.safetensors")) < 2 * dense  # fp32 beside bf16
    weights = json.loads((out / "config.json").read_text())["quantization_config"]["weights"]
    assert {one["layout"]["name"] for one in weights.values()} == {
        {"block-low-rank": "bitmask", "bits": "pack-quantized", "shift": "table"}[name]
    }


@pytest.mark.parametrize(("code", "count"), [(SignAndBits(4), 15), (SignAndShift(3), 8), (SignAndBits(2), 3)])
def test_a_code_is_one_of_its_numbers_and_the_nearest_one(code: Code, count: int) -> None:
    values = torch.linspace(-1.2, 1.2, 481) * code.largest
    on = code.nearest(values)
    found = code.value(on)
    assert len(found.unique()) == count
    assert float(found.max()) == code.largest == -float(found.min())
    distances = (values.unsqueeze(1) - found.unique()).abs()
    torch.testing.assert_close((values - found).abs(), distances.min(1).values)
    scale = torch.tensor([0.5], dtype=torch.bfloat16)
    one = code.packed(on.unsqueeze(0), scale)
    assert torch.equal(one.layout.decode(one.tensors, one.shape, torch.float32)[0], 0.5 * found)


def test_numbers_of_bits_and_shifts() -> None:
    bits, shift = SignAndBits(4), SignAndShift(3)
    for on, number in (([0, 1, 0, 1], 5), ([1, 0, 1, 1], -6), ([1, 0, 0, 0], 0)):
        assert float(bits.value(torch.tensor(on, dtype=torch.float32))) == number
    # The steps behind the last one that is off are counted: 0 of 3, 1, 3.
    for on, number in (([0, 1, 1, 0], 2**-3), ([1, 1, 0, 1], -(2**-2)), ([0, 1, 1, 1], 1.0)):
        assert float(shift.value(torch.tensor(on, dtype=torch.float32))) == number


def test_a_window_of_whole_numbers_is_itself_without_smoothing() -> None:
    windows = Windows(torch.Size([12, 3]), 1, torch.tensor([0.5, 0.25, 0.0]))
    with torch.no_grad():
        windows.width.copy_(torch.tensor([4, 6, 2]) / 12)
    windows.sigma = 1e6
    wanted = torch.zeros(3, 12)
    wanted[0, 4:8] = wanted[1, 0:6] = wanted[2, [11, 0]] = 1
    torch.testing.assert_close(windows.mask().detach(), wanted, atol=1e-5, rtol=0)
    windows.sigma = 1.0
    assert float((windows.mask().detach() - wanted).abs().max()) > 0.1
    torch.testing.assert_close(windows.mask().detach().sum(1), wanted.sum(1))  # a Gaussian keeps the mean
    windows.settle(torch.tensor([True, True, False]))
    assert windows.settled is not None
    assert torch.equal(windows.settled[:2], wanted[:2])
    assert not windows.settled[2].any()


def test_windows_have_gradients_to_their_widths_and_places() -> None:
    windows = Windows(torch.Size([12, 1]), 1, torch.tensor([0.5]))
    with torch.no_grad():
        windows.width.fill_(0.5)
    windows.sigma = 4.0
    for parameter in (windows.width, windows.centre):
        target = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad((windows.mask() * target).sum(), parameter)
        values, step = [], 1e-3
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step)
                values.append(float((windows.mask() * target).sum()))
                parameter.sub_(sign * step)
        assert float(gradient) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-2)


def test_widths_shrink_by_one_amount_to_a_sum() -> None:
    left, right = (Windows(torch.Size([size, 2]), 1, torch.zeros(2)) for size in (8, 4))
    with torch.no_grad():
        left.width.copy_(torch.tensor([8.0, 1.0]) / 8)
        right.width.copy_(torch.tensor([4.0, 2.0]) / 4)
    shrink((left, right), 9.0)
    torch.testing.assert_close(8 * left.width.detach(), torch.tensor([19 / 3, 0]))
    torch.testing.assert_close(4 * right.width.detach(), torch.tensor([7 / 3, 1 / 3]))
    total = 8 * float(left.width.detach().sum()) + 4 * float(right.width.detach().sum())
    assert total == pytest.approx(9.0, abs=1e-4)
    shrink((left, right), 100.0)
    assert 8 * float(left.width.detach().sum()) + 4 * float(right.width.detach().sum()) == pytest.approx(
        total
    )


def test_block_low_rank_keeps_to_its_numbers() -> None:
    model, packed, _ = trained("block-low-rank")
    for name, layer in model.named_modules():
        if f"{name}.left" in packed:
            numbers = sum(packed[f"{name}.{part}"].numbers for part in ("left", "right"))
            assert numbers <= 0.6 * layer.in_features * layer.out_features  # type: ignore[union-attr,operator]
            assert numbers > 0.5 * layer.in_features * layer.out_features  # type: ignore[union-attr,operator]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "bits", "bits": 9}, "bits are 2 to 8, not 9"),
        ({"method": "shift", "bits": 6}, "bits of 'shift' are 2 to 5, not 6"),
        ({"method": "lost", "bits": 4}, "'lost' has no bits to set"),
        ({"method": "full", "bits": 4}, "'full' has no bits to set"),
        ({"method": "block-low-rank", "from_weights": True}, "'block-low-rank' begins at random weights"),
        ({"method": "blocklowrank"}, "no method"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TrainSettings(**settings)


def test_bits_begin_at_the_weights_of_a_model(tiny_model: Tiny) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    before = {name: layer.weight.detach().clone() for name, layer in linear_layers(model).items()}
    layers = entry("bits", bits=8)
    layers.begin(model, list(before))
    for name, layer in linear_layers(model).items():
        error = (layer.weight.detach() - before[name]).abs().amax()
        assert float(error) <= 0.006 * float(before[name].abs().max())
