"""Runs HQQ on one job: half-quadratic rounding of the weights, without data."""

from __future__ import annotations

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from hqq.models.hf.base import AutoHQQHFModel
from probe import import_model, read_job, save_decoded
from transformers import AutoModelForCausalLM


def main() -> None:
    """Load, round, save; its grid is always asymmetric, with zero points that are not whole numbers."""
    job = read_job()
    import_model(job.model)
    job.mark("imported")
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype="auto")
    job.mark("loaded")
    grid = BaseQuantizeConfig(nbits=job.bits, group_size=job.group, axis=1)
    AutoHQQHFModel.quantize_model(model, quant_config=grid, compute_dtype=torch.bfloat16, device="cpu")
    job.mark("compressed")
    AutoHQQHFModel.save_quantized(model, job.out)
    job.mark("saved")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, HQQLinear)}
    stored = [layer.W_q for layer in layers.values()]
    stored += [layer.meta[part] for layer in layers.values() for part in ("scale", "zero")]
    job.note(linear_bytes=sum(tensor.nbytes for tensor in stored))
    save_decoded(job, {name: layer.dequantize() for name, layer in layers.items()})


if __name__ == "__main__":
    main()
