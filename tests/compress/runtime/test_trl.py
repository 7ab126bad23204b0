"""TRL's supervised fine-tuning of LoRA adapters on a packed model: the loss falls, the packed weights stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.modules import PackedLinear
from datasets import Dataset
from transformers import AutoTokenizer

import compress

peft = pytest.importorskip("peft")
trl = pytest.importorskip("trl")

TEXTS = ["def parse(text):\n    return text.split()\n"] * 32


def test_the_loss_falls_on_packed_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compress.compress("embedded", {"steps": [{"quantize": {"bits": 4, "group_size": 64}}]}, "OUT")
    model = compress.load("OUT", dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings: dict[str, Any] = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 5e-3}
    trainer = trl.SFTTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained("OUT"),
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        peft_config=peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        args=trl.SFTConfig("TUNED", report_to=[], logging_steps=1, use_cpu=True, bf16=False, **settings),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    packed = {name for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    assert len(packed) == 42
    after = model.state_dict()
    for name, value in before.items():
        layer, _, leaf = name.rpartition(".")
        wrapped = f"{layer}.base_layer.{leaf}"
        assert torch.equal(after[wrapped if wrapped in after else name], value), name
