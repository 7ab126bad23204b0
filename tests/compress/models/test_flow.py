"""Linears that read one tensor: found from the model itself, in the order of the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from compress.checkpoint.source import open_source
from compress.models.flow import watch_flow
from compress.models.skeleton import open_skeleton


def on_meta(path: Path) -> tuple[PreTrainedModel, tuple[str, ...]]:
    skeleton = open_skeleton(open_source(path))
    return skeleton.model, tuple(skeleton.blocks)


def grouped(path: Path) -> list[set[str]]:
    """The groups of the first block by the linears' last names, in their order."""
    model, blocks = on_meta(path)
    found: dict[int, set[str]] = {}
    for name, number in watch_flow(model, blocks).groups.items():
        if name.startswith(f"{blocks[0]}."):
            found.setdefault(number, set()).add(name.rpartition(".")[2])
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", [{"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}, {"down_proj"}]),
        ("phi3", [{"qkv_proj"}, {"o_proj"}, {"gate_up_proj"}, {"down_proj"}]),
        ("gpt2", [{"c_attn"}, {"c_proj"}, {"c_fc"}, {"c_proj"}]),
        ("opt", [{"q_proj", "k_proj", "v_proj"}, {"out_proj"}, {"fc1"}, {"fc2"}]),
        ("gpt_neox", [{"query_key_value"}, {"dense"}, {"dense_h_to_4h"}, {"dense_4h_to_h"}]),
    ],
)
def test_groups_of_known_blocks(
    tiny_model: Callable[..., Path], family: str, expected: list[set[str]]
) -> None:
    assert sorted(map(sorted, grouped(tiny_model(family)))) == sorted(map(sorted, expected))


def test_groups_come_in_the_order_of_the_data(tiny_model: Callable[..., Path]) -> None:
    assert grouped(tiny_model("qwen3")) == [
        {"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}, {"down_proj"},
    ]  # fmt: skip


def test_every_linear_of_the_blocks_is_in_a_group(tiny_model: Callable[..., Path]) -> None:
    model, blocks = on_meta(tiny_model("mixtral"))
    linears = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(tuple(f"{block}." for block in blocks))
    }
    assert watch_flow(model, blocks).groups.keys() == linears


def test_blocks_do_not_share_groups(tiny_model: Callable[..., Path]) -> None:
    model, blocks = on_meta(tiny_model("llama"))
    found = watch_flow(model, blocks).groups
    first, second = (
        {number for name, number in found.items() if name.startswith(f"{block}.")} for block in blocks
    )
    assert not first & second


def test_a_model_that_cannot_run_on_meta_gets_the_careful_answer() -> None:
    class Stubborn(LlamaForCausalLM):
        def forward(self, *given: object, **named: object) -> None:  # type: ignore[override]
            raise RuntimeError("not on meta")

    model = _tiny_llama(Stubborn)
    found = watch_flow(model, ["model.layers.0"]).groups
    attention = {found[f"model.layers.0.self_attn.{name}_proj"] for name in "qkvo"}
    # All of one parent with the same number of inputs together: at worst too careful.
    assert len(attention) == 1
    assert found["model.layers.0.mlp.up_proj"] == found["model.layers.0.mlp.down_proj"]
    assert found["model.layers.0.mlp.up_proj"] not in attention


def test_hooks_are_taken_away_again(tiny_model: Callable[..., Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    watch_flow(model, ["model.layers.0", "model.layers.1"])
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def _tiny_llama(cls: type[LlamaForCausalLM] = LlamaForCausalLM) -> LlamaForCausalLM:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    with torch.device("meta"):
        return cls(LlamaConfig(vocab_size=32, intermediate_size=64, **sizes)).eval()


def test_a_forward_that_only_multiplies_neither_reads_nor_changes_weights() -> None:
    flow = watch_flow(_tiny_llama(), ["model.layers.0"])
    assert not flow.read
    assert not flow.changed


def test_weights_read_outside_of_their_layer_are_noticed() -> None:
    class Reader(LlamaForCausalLM):
        def forward(self, **named: Any) -> Any:  # type: ignore[override]
            mlp = self.model.layers[0].mlp
            # Sizes and dtypes say nothing about values.
            assert mlp.up_proj.weight.dtype.is_floating_point
            assert mlp.up_proj.weight.shape[0] == mlp.up_proj.weight.size(0)
            mlp.down_proj.weight @ torch.zeros(64, 2, device="meta", dtype=mlp.down_proj.weight.dtype)
            self.model.layers[0].self_attn.o_proj.weight.T.contiguous()
            return super().forward(**named)

    flow = watch_flow(_tiny_llama(Reader), ["model.layers.0"])
    assert flow.read - {"model.layers.0.mlp.up_proj"} == {
        "model.layers.0.mlp.down_proj",
        "model.layers.0.self_attn.o_proj",
    }
    assert not flow.changed


def test_weights_changed_in_place_are_noticed_even_if_the_forward_then_fails() -> None:
    class Changer(LlamaForCausalLM):
        def forward(self, **named: Any) -> Any:  # type: ignore[override]
            self.model.layers[0].self_attn.o_proj.weight.div_(2)
            self.model.norm.weight.add_(1)
            raise RuntimeError("not on meta")

    flow = watch_flow(_tiny_llama(Changer), ["model.layers.0"])
    assert flow.changed == {"model.layers.0.self_attn.o_proj.weight", "model.norm.weight"}
