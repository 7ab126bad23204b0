"""GPTQModel on a CPU, its torch kernels in fp32: see ``children.py``."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from children import answer_all


def measure(folder: str, ids: Any, job: dict[str, Any]) -> dict[str, Any]:
    # In the child: GPTQModel starts threads when it is imported, and they do not survive a fork.
    import torch  # noqa: PLC0415
    from gptqmodel import BACKEND, GPTQModel  # noqa: PLC0415
    from torch_figures import torch_figures  # noqa: PLC0415

    torch.set_num_threads(1)
    model = GPTQModel.load(folder, device="cpu", dtype=torch.bfloat16, backend=BACKEND.TORCH)
    return torch_figures(model.model.eval(), ids, job)


if __name__ == "__main__":
    answer_all(version("gptqmodel"), measure)
