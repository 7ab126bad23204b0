"""GPTQModel on a CPU, its torch kernels in fp32: see ``children.py``."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from children import answer_all
from gptqmodel import BACKEND, GPTQModel
from torch_figures import torch_figures


def measure(folder: str, ids: Any, job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    model = GPTQModel.load(folder, device="cpu", dtype=torch.float32, backend=BACKEND.TORCH)
    return torch_figures(model.model.eval(), ids, job)


if __name__ == "__main__":
    answer_all(version("gptqmodel"), measure)
