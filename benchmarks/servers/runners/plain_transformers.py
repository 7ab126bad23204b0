"""Plain transformers, in fp32 where it can: see ``children.py``. This process never imports the project under test."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from children import answer_all
from torch_figures import torch_figures


def dtype_of(folder: Path) -> torch.dtype | str:
    """fp32; of floats in 4 bits, and of those with powers of two as scales, the checkpoint's dtype.

    compressed-tensors decodes these to bf16, whatever the model is.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    groups = ((config.get("quantization_config") or {}).get("config_groups") or {}).values()
    weights = [group.get("weights") or {} for group in groups]
    fixed = any(
        each.get("type") == "float"
        and (each.get("num_bits") == 4 or each.get("scale_dtype") == "torch.uint8")
        for each in weights
    )
    return "auto" if fixed else torch.float32


def measure(folder: str, ids: Any, job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)  # in the child: a pool of threads does not survive a fork
    blocks = Path(folder) / "model.gguf"
    source = {"gguf_file": blocks.name} if blocks.exists() else {}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype_of(Path(folder)), output_loading_info=True, **source
    )
    lost = {key: sorted(map(str, info[key]))[:3] for key in ("missing_keys", "mismatched_keys") if info[key]}
    if lost:
        raise ValueError(f"transformers loads it with {lost}")
    figures = torch_figures(model.eval(), ids, job)
    if any(name.partition(".")[0] in ("compress", "compress_kernels") for name in sys.modules):
        raise AssertionError("this process has imported the project under test")
    return figures


if __name__ == "__main__":
    answer_all(transformers.__version__, measure)
