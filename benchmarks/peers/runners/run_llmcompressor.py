"""Runs llm-compressor on one job: GPTQ, AWQ, RTN, SparseGPT or Wanda, then saves what it gives."""

from __future__ import annotations

from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, preset_name_to_scheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from probe import Job, import_model, read_job
from transformers import AutoModelForCausalLM, AutoTokenizer


def grid(job: Job) -> dict[str, Any]:
    """The grid as llm-compressor's own scheme, every linear but the head: a preset by name, or integers."""
    if preset := job.options.get("scheme"):
        if group := job.options.get("group"):
            scheme = preset_name_to_scheme(preset, ["Linear"])
            scheme.weights = scheme.weights.model_copy(update={"group_size": group})
            return {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
        return {"scheme": preset, "targets": ["Linear"], "ignore": ["lm_head"]}
    weights = QuantizationArgs(
        num_bits=job.bits, symmetric=job.symmetric, strategy="group", group_size=job.group, **job.options
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    return {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}


def recipe(job: Job) -> list[Any]:
    """The modifiers of one method, each with the tool's defaults."""
    mask = {"sparsity": job.sparsity, "mask_structure": job.pattern, "ignore": ["re:.*lm_head"]}
    modifiers: dict[str, list[Any]] = {
        "rtn": [lambda: QuantizationModifier(**grid(job))],
        "gptq": [lambda: GPTQModifier(**grid(job))],
        "smoothquant-gptq": [
            lambda: SmoothQuantModifier(smoothing_strength=0.8),
            lambda: GPTQModifier(**grid(job)),
        ],
        "awq": [AWQModifier, lambda: QuantizationModifier(**grid(job))],
        "sparsegpt": [lambda: SparseGPTModifier(targets=["Linear"], **mask)],
        "wanda": [lambda: WandaPruningModifier(targets=["Linear"], **mask)],
    }
    made = [make() for make in modifiers[job.method]]
    if job.method in {"sparsegpt", "wanda"} and job.bits:
        made.append(GPTQModifier(**grid(job)))
    return made


def main() -> None:
    """Load, compress, save; a mark after each."""
    job = read_job()
    # Its AWQ pins host memory without asking whether there is an accelerator, and so fails on a CPU.
    IntermediatesCache.pin_memory = lambda self, *_, **__: None
    windows = job.windows()
    import_model(job.model)
    job.mark("imported")
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    job.mark("loaded")
    rows = {"input_ids": windows.tolist(), "attention_mask": [[1] * job.length] * job.samples}
    calibration = (
        {}
        if job.method == "rtn"
        else {
            "dataset": Dataset.from_dict(rows),
            "max_seq_length": job.length,
            "num_calibration_samples": job.samples,
            "batch_size": job.batch,
            "shuffle_calibration_samples": False,
        }
    )
    oneshot(model=model, tokenizer=tokenizer, recipe=recipe(job), **calibration)
    job.mark("compressed")
    model.save_pretrained(job.out, save_compressed=bool(job.bits))
    tokenizer.save_pretrained(job.out)
    job.mark("saved")


if __name__ == "__main__":
    main()
