"""Training on top of packed layers: gradients of a loaded model, and PEFT's LoRA on it, beside the decoded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.modules import PackedLinear
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import compress

peft = pytest.importorskip("peft")

TOKENS = torch.arange(2, 26).view(2, 12) * 7 % 256
FOUR_BITS = {"quantize": {"bits": 4, "group_size": 16, "symmetric": False}}
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "4 bits": ("llama", FOUR_BITS, 1e-4),
    "transposed linears": ("gpt2", FOUR_BITS, 1e-4),
    "experts": ("mixtral", {**FOUR_BITS, "targets": ["linear", "experts"]}, 1e-4),
    # The forward rounds activations, the decoded model does not.
    "int8": ("llama", {"quantize": {"bits": 8, "group_size": "channel"}, "activations": {}}, 5e-2),
    "half": ("llama", {"prune": {"sparsity": 0.5}}, 1e-4),
    "2:4": ("llama", {"prune": {"pattern": "2:4"}}, 1e-4),
    "low rank": ("llama", {"lowrank": {"ratio": 0.8}}, 1e-4),
}


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Any],
    write_rounded: Callable[..., Any],
) -> Callable[[str], Path]:
    """`folder("4 bits")` → a native checkpoint of the case."""
    root = tmp_path_factory.mktemp("adapters")

    def write(label: str) -> Path:
        family, step, _ = CASES[label]
        out: Path = root / label
        if not out.exists():
            write_rounded(tiny_model(family), out, make_recipe(step), format="native")
        return out

    return write


def packed(folder: Path) -> Any:
    return compress.load(folder, dtype=torch.float32)


def decoded(folder: Path) -> Any:
    """The same model with an ``nn.Linear`` of the decoded weight in the place of every packed layer."""
    model = packed(folder)
    for name in [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]:
        layer = model.get_submodule(name)
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        linear.weight = nn.Parameter(layer.dequantize(torch.float32), requires_grad=False)
        if layer.bias is not None:
            linear.bias = layer.bias
        model.set_submodule(name, linear)
    return model


def from_pretrained(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def gradient(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient by the input embeddings."""
    embeddings = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
    loss = model(inputs_embeds=embeddings, labels=TOKENS).loss
    return loss.detach(), torch.autograd.grad(loss, embeddings)[0]


@pytest.mark.parametrize("label", CASES)
def test_the_gradient_is_the_decoded_models(label: str, folder: Callable[[str], Path]) -> None:
    path, tolerance = folder(label), CASES[label][2]
    model, dense = packed(path), decoded(path)
    assert any(isinstance(module, PackedLinear) for module in model.modules())
    assert not any(isinstance(module, PackedLinear) for module in dense.modules())
    (loss, found), (expected_loss, expected) = gradient(model), gradient(dense)
    assert float(loss) == pytest.approx(float(expected_loss), rel=tolerance)
    assert float((found - expected).norm() / expected.norm()) < 3 * tolerance


def with_lora(model: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=16, **options))


def curve(model: Any, steps: int = 8) -> list[float]:
    """Losses of a few steps of AdamW on the adapter."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("read", [packed, from_pretrained])
@pytest.mark.parametrize("label", ["4 bits", "experts", "2:4"])
def test_lora_trains_as_on_the_decoded_model(
    label: str, read: Callable[[Path], Any], folder: Callable[[str], Path]
) -> None:
    targets = {"target_modules": ["q_proj", "v_proj", "o_proj"]}
    model = with_lora(read(folder(label)), **targets)
    adapted = model.base_model.model.model.layers[0].self_attn.q_proj
    assert isinstance(adapted.base_layer, PackedLinear)
    assert adapted.lora_A["default"].weight.dtype == torch.float32
    before = {name: tensor.clone() for name, tensor in adapted.base_layer.state_dict().items()}
    losses = curve(model)
    assert losses == pytest.approx(curve(with_lora(decoded(folder(label)), **targets)), rel=1e-4)
    assert losses[-1] < 0.95 * losses[0]
    for name, tensor in adapted.base_layer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_lora_finds_packed_layers_and_trains_with_checkpointing(
    folder: Callable[[str], Path],
) -> None:
    plain = with_lora(packed(folder("4 bits")), target_modules="all-linear")
    assert sum(isinstance(module, peft.tuners.lora.Linear) for module in plain.modules()) == 14
    saving = with_lora(packed(folder("4 bits")), target_modules="all-linear").train()
    saving.enable_input_require_grads()
    saving.gradient_checkpointing_enable({"use_reentrant": False})
    assert curve(saving, 3) == pytest.approx(curve(plain, 3), rel=1e-5)


def test_an_adapter_is_saved_and_put_on_again(folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = with_lora(packed(folder("4 bits")), target_modules=["q_proj"])
    curve(model, 2)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(packed(folder("4 bits")), tmp_path)
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("safe", [False, True])
def test_merging_into_a_packed_weight_is_refused(safe: bool, folder: Callable[[str], Path]) -> None:
    model = with_lora(packed(folder("4 bits")), target_modules=["q_proj"])
    curve(model, 1)
    with pytest.raises(TypeError, match="cannot be changed"):
        model.merge_and_unload(safe_merge=safe)
