"""Runs NVIDIA's ModelOpt on one job: a configuration by name, calibrated on the windows, evaluated as it simulates it.

Small floats of 4 bits it simulates on GPUs alone; these it exports (``exported``), and the folder is what is evaluated.
"""

from __future__ import annotations

import copy
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from divergence import divergence
from modelopt.torch.export import export_hf_checkpoint
from probe import import_model, read_job
from transformers import AutoModelForCausalLM, AutoTokenizer


def configuration(options: dict[str, Any]) -> dict[str, Any]:
    """One of ModelOpt's own; ``weights_alone`` switches the rounding of inputs off."""
    config: dict[str, Any] = copy.deepcopy(getattr(mtq, options["config"]))
    if options.get("weights_alone"):
        config["quant_cfg"] = [*config["quant_cfg"], {"quantizer_name": "*input_quantizer", "enable": False}]
    return config


def main() -> None:
    """Load, calibrate, quantize, evaluate."""
    job = read_job()
    windows = job.windows()
    import_model(job.model)
    job.mark("imported")
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32).eval()
    job.mark("loaded")

    def calibrate(each: Any) -> None:
        with torch.no_grad():
            for window in windows:
                each(input_ids=window[None], use_cache=False)

    mtq.quantize(model, configuration(job.options), calibrate)
    job.mark("compressed")
    if job.options.get("exported"):
        with torch.no_grad():
            export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=job.out)
        AutoTokenizer.from_pretrained(job.model).save_pretrained(job.out)
        job.mark("saved")
        return
    job.mark("saved")
    job.note(**divergence(model, job.options["ids"], job.options["dense"]))


if __name__ == "__main__":
    main()
