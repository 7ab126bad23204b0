"""GPTQ and AWQ checkpoints by other programs, in an environment of its own (`gptqmodel`, `optimum`, torch for the CPU).

python gptqmodel_logits.py logits   LOADER FOLDER IDS.npy OUT.npy
                                    IDS int64 [windows, length] → fp16 log-probabilities
python gptqmodel_logits.py generate LOADER FOLDER IDS.npy OUT.json COUNT
                                    greedy continuation of each window

LOADER is `gptqmodel`, its own loader and torch kernel, or `transformers`, plain `from_pretrained`.
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
        if told["missing_keys"] or told["mismatched_keys"]:
            raise SystemExit(f"left at random values: {sorted(map(str, told['missing_keys']))[:3]}")
        return model.eval()
    from gptqmodel import BACKEND, GPTQModel  # noqa: PLC0415

    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    method = config["quantization_config"]["quant_method"]
    backend = BACKEND.AWQ_TORCH if method == "awq" else BACKEND.GPTQ_TORCH
    return GPTQModel.load(folder, backend=backend, device="cpu").model.eval()


def logits(loader: str, folder: str, ids_path: str, out_path: str) -> None:
    model = open_model(loader, folder)
    found = []
    with torch.no_grad():
        for window in np.load(ids_path):
            values = model(input_ids=torch.from_numpy(window[None]), use_cache=False).logits[0]
            found.append(values.double().log_softmax(-1).to(torch.float16).numpy())
    np.save(out_path, np.stack(found))


def generate(loader: str, folder: str, ids_path: str, out_path: str, count: str) -> None:
    model = open_model(loader, folder)
    found = []
    with torch.no_grad():
        for window in np.load(ids_path):
            tokens = [int(token) for token in window]
            for _ in range(int(count)):
                tokens.append(
                    int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
                )
            found.append(tokens[len(window) :])
    pathlib.Path(out_path).write_text(json.dumps(found))


if __name__ == "__main__":
    {"logits": logits, "generate": generate}[sys.argv[1]](*sys.argv[2:])
