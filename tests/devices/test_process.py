"""The tests of the stand-in device, in a process that nothing else has used torch in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_the_device_in_a_process_of_its_own() -> None:
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=folder.parents[1],
        env={**os.environ, "COMPRESS_TESTS_STANDIN": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
