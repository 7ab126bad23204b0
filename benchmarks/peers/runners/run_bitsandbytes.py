"""Runs bitsandbytes' NF4 on one job: its own grid and blocks of 64, without data."""

from __future__ import annotations

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from probe import import_model, read_job, save_decoded
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def main() -> None:
    """Load (which rounds), save."""
    job = read_job()
    import_model(job.model)
    job.mark("imported")
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(
        job.model, dtype="auto", quantization_config=config, device_map="cpu"
    )
    job.mark("compressed")
    model.save_pretrained(job.out)
    job.mark("saved")
    layers = {name: layer.weight for name, layer in model.named_modules() if isinstance(layer, Linear4bit)}
    save_decoded(
        job, {name: dequantize_4bit(weight.data, weight.quant_state) for name, weight in layers.items()}
    )


if __name__ == "__main__":
    main()
