"""Runs GPTQModel's GPTQ on one job."""

from __future__ import annotations

from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from probe import dense_linears, import_model, read_job, save_decoded


def main() -> None:
    """Load, quantize, save; the saved form is decoded by its own torch kernel."""
    job = read_job()
    windows = job.windows()
    import_model(job.model)
    job.mark("imported")
    config = QuantizeConfig(
        bits=job.bits, group_size=job.group, sym=job.symmetric, device="cpu", **job.options
    )
    model = GPTQModel.load(job.model, config)
    job.mark("loaded")
    rows = [{"input_ids": row, "attention_mask": [1] * job.length} for row in windows.tolist()]
    model.quantize(rows, batch_size=job.batch)
    job.mark("compressed")
    model.save(job.out)
    job.mark("saved")
    packed = GPTQModel.load(job.out, backend=BACKEND.TORCH, device="cpu").model
    save_decoded(job, dense_linears(packed, packed.get_output_embeddings()))


if __name__ == "__main__":
    main()
