"""Runs AutoRound on one job with a scheme of its own, evaluated as it simulates it: small floats, and rounded inputs."""

from __future__ import annotations

import torch
from auto_round import AutoRound
from auto_round.schemes import QuantizationScheme
from divergence import divergence
from probe import import_model, read_job
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Load, tune, evaluate."""
    job = read_job()
    windows = job.windows()
    import_model(job.model)
    job.mark("imported")
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    job.mark("loaded")
    tuned = AutoRound(
        model,
        tokenizer,
        scheme=QuantizationScheme(**job.options["scheme"]),
        dataset=list(windows.split(job.batch)),
        seqlen=job.length,
        nsamples=job.samples,
        batch_size=job.batch,
        iters=job.options["iterations"],
        device_map="cpu",
        enable_torch_compile=False,
        seed=job.seed,
    )
    found = tuned.quantize()
    job.mark("saved")
    quantized = found[0] if isinstance(found, tuple) else found
    job.note(**divergence(quantized.eval().float(), job.options["ids"], job.options["dense"]))


if __name__ == "__main__":
    main()
