"""Runs torchao's integer rounding for CPUs on one job: 4 bits, asymmetric, without data."""

from __future__ import annotations

from pathlib import Path

import torch
from probe import dense_linears, import_model, read_job, save_decoded
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
from torchao.quantization import quantize_
from transformers import AutoModelForCausalLM


def main() -> None:
    """Load, round, save the state."""
    job = read_job()
    import_model(job.model)
    job.mark("imported")
    if job.bits != 4:
        raise SystemExit("torchao rounds weights to 4 bits on a CPU")
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype="auto")
    head = model.get_output_embeddings()
    job.mark("loaded")
    config = PrototypeInt4WeightOnlyConfig(group_size=job.group)
    quantize_(
        model,
        config,
        filter_fn=lambda module, name: isinstance(module, torch.nn.Linear) and module is not head,
    )
    job.mark("compressed")
    Path(job.out).mkdir(parents=True)
    torch.save(model.state_dict(), Path(job.out) / "model.pt")
    job.mark("saved")
    packed = [
        layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer is not head
    ]
    parts = [getattr(weight, name) for weight in packed for name in weight.__tensor_flatten__()[0]]
    job.note(linear_bytes=sum(part.nbytes for part in parts))
    save_decoded(job, dense_linears(model, head))


if __name__ == "__main__":
    main()
