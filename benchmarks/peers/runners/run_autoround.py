"""Runs AutoRound (SignRound) on one job with its own defaults: 200 iterations on block outputs."""

from __future__ import annotations

from auto_round import AutoRound
from auto_round.schemes import QuantizationScheme
from probe import dense_linears, import_model, read_job, save_decoded
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Load, tune, save; the saved form is decoded by AutoRound's own loader."""
    job = read_job()
    windows = job.windows()
    import_model(job.model)
    job.mark("imported")
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    job.mark("loaded")
    scheme = QuantizationScheme(
        bits=job.bits, group_size=job.group, sym=job.symmetric, data_type="int", act_bits=16
    )
    tuned = AutoRound(
        model,
        tokenizer,
        scheme=scheme,
        dataset=list(windows.split(job.batch)),
        seqlen=job.length,
        nsamples=job.samples,
        batch_size=job.batch,
        device_map="cpu",
        enable_torch_compile=False,
        seed=job.seed,
        **job.options,
    )
    tuned.quantize()
    job.mark("compressed")
    # Its own format packs asymmetric 4 bits through a class that rejects the call; compressed-tensors it can write.
    foreign = job.bits == 4 and not job.symmetric
    tuned.save_quantized(job.out, format="llm_compressor" if foreign else "auto_round")
    job.mark("saved")
    if not foreign:
        packed = AutoModelForCausalLM.from_pretrained(job.out, dtype="auto", device_map="cpu")
        save_decoded(job, dense_linears(packed, packed.get_output_embeddings()))


if __name__ == "__main__":
    main()
