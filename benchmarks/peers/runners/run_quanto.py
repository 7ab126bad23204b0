"""Runs optimum-quanto on one job: 2 or 4 bits by its own group size of 128, without data."""

from __future__ import annotations

from pathlib import Path

import torch
from optimum.quanto import QLinear, freeze, qint2, qint4, quantize
from probe import dense_linears, import_model, read_job, save_decoded
from transformers import AutoModelForCausalLM


def main() -> None:
    """Load, round, save the state."""
    job = read_job()
    import_model(job.model)
    job.mark("imported")
    kinds = {2: qint2, 4: qint4}
    if job.bits not in kinds:
        raise SystemExit("optimum-quanto rounds to 2 or 4 bits")
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype="auto")
    job.mark("loaded")
    quantize(model, weights=kinds[job.bits], exclude="lm_head")
    freeze(model)
    job.mark("compressed")
    Path(job.out).mkdir(parents=True)
    torch.save(model.state_dict(), Path(job.out) / "model.pt")
    job.mark("saved")
    layers = {name for name, layer in model.named_modules() if isinstance(layer, QLinear)}
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    owned = [
        tensor
        for name, tensor in state.items()
        if any(name.startswith(f"{layer}.weight") for layer in layers)
    ]
    job.note(linear_bytes=sum(tensor.nbytes for tensor in owned))
    save_decoded(job, dense_linears(model, model.get_output_embeddings()))


if __name__ == "__main__":
    main()
