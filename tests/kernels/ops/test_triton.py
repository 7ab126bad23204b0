"""The Triton kernels over the whole correctness matrix, in the interpreter.

A process of its own: the interpreter has to be asked for before anything imports triton, and other tests do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def test_every_kernel_in_the_interpreter() -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    options = ["--check", "--backend", "triton", "--device", "cpu"]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.kernels", *options],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "pack-quantized" in result.stdout
