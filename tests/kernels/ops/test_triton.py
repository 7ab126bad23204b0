"""The Triton kernels over the whole correctness matrix, in the interpreter.

A process of its own: the interpreter has to be asked for before anything imports triton, and other tests do.
"""

from __future__ import annotations

import os
import subprocess
import sys


def test_every_kernel_in_the_interpreter() -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [
        sys.executable,
        "-m",
        "benchmarks.speed.kernels",
        "--check",
        "--backend",
        "triton",
        "--device",
        "cpu",
    ]
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
