"""Trains PEFT's LoRA on bitsandbytes' NF4 model: ``python run_peft.py MODEL WINDOWS OUT LOSS RATE RANK BATCH``.

``WINDOWS`` is a safetensors file with ``train`` int64 ``[windows, length]`` and ``text0``, ``text1``, … to measure on.
``LOSS`` is ``kl`` (from the dense model) or ``ce`` (cross entropy of the text). Writes the KL from the dense model by token
before and after.
It needs torch, transformers, peft, bitsandbytes and safetensors, and nothing of this repository.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


@torch.no_grad()
def kl(dense: Any, other: Any, windows: Tensor) -> float:
    """KL(dense ‖ other) by token, in nats, fp32."""
    total = 0.0
    for tokens in windows.split(4):
        log_p, log_q = (one(input_ids=tokens).logits.float().log_softmax(-1) for one in (dense, other))
        total += float((log_p.exp() * (log_p - log_q)).sum())
    return total / windows.numel()


def train(dense: Any, model: Any, windows: Tensor, batch: int, loss: str, rate: float) -> None:
    """AdamW without decay, the rate falling to 0 on a line."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = len(windows) // batch
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for tokens in windows.split(batch):
        log_q = model(input_ids=tokens).logits.float().log_softmax(-1)
        if loss == "kl":
            with torch.no_grad():
                log_p = dense(input_ids=tokens).logits.float().log_softmax(-1)
            value = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        else:
            value = -log_q[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()


def main() -> None:
    """Load, measure, train, measure."""
    source, windows, out, loss, rate, rank, batch = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    began = time.perf_counter()
    tensors = load_file(windows)
    texts = [tensors[name] for name in sorted(tensors) if name != "train"]
    dense = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    base = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=config, dtype=torch.float32, device_map="cpu"
    ).eval()
    start = [kl(dense, base, text) for text in texts]
    lora = peft.LoraConfig(
        r=int(rank), lora_alpha=2 * int(rank), target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base, lora)
    train(dense, model, tensors["train"], int(batch), loss, float(rate))
    found = {"start": start, "kl": [kl(dense, model, text) for text in texts]}
    Path(out).write_text(
        json.dumps({**found, "seconds": time.perf_counter() - began, "peft": peft.__version__})
    )


if __name__ == "__main__":
    main()
