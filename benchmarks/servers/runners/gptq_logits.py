"""Log-probabilities of GPTQ and AWQ folders: ``python gptq_logits.py LOADER FOLDER IDS.npy OUT.npy``.

In an environment of its own (`gptqmodel`, `optimum`, torch for the CPU), which never imports this package. LOADER is
`gptqmodel`, its own loader with its torch kernels, or `transformers`, plain `from_pretrained`. IDS is int64
``[windows, length]``, OUT fp32 ``[windows, length, vocabulary]``; layers compute in the checkpoint's dtype.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import numpy as np
import torch


def open_model(loader: str, folder: str) -> Any:
    if loader == "transformers":
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 (the other loader patches it)

        model, told = AutoModelForCausalLM.from_pretrained(
            folder, device_map="cpu", dtype="auto", output_loading_info=True
        )
        if unset := sorted(map(str, (*told["missing_keys"], *told["mismatched_keys"]))):
            raise SystemExit(f"left at random values: {unset[:3]}")
        return model.eval()
    from gptqmodel import BACKEND, GPTQModel  # noqa: PLC0415

    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    awq = config["quantization_config"]["quant_method"] == "awq"
    backend = BACKEND.AWQ_TORCH if awq else BACKEND.GPTQ_TORCH
    return GPTQModel.load(folder, backend=backend, device="cpu").model.eval()


def main(loader: str, folder: str, ids_path: str, out_path: str) -> None:
    model = open_model(loader, folder)
    found = []
    with torch.no_grad():
        for window in np.load(ids_path):
            values = model(input_ids=torch.from_numpy(window[None]), use_cache=False).logits[0]
            found.append(values.double().log_softmax(-1).float().numpy())
    np.save(out_path, np.stack(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
