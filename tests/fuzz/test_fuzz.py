"""Five hundred mutations of what a person can hand to the command line: each ends well or in one short sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COUNT = 500


def test_every_mutation_ends_well_or_in_a_sentence() -> None:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "benchmarks.fuzz", "--count", str(COUNT), "--quick"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout, ended.stderr[-3000:]
    summary = json.loads(ended.stdout)
    assert summary["cases"] == COUNT
    assert summary["faulty"] == [], json.dumps(summary["faulty"][:5], indent=1)
    # Both ends are common: mutations that are seen, and some that do no harm.
    assert summary["ends"]["2"] > COUNT // 4
    assert summary["ends"]["0"] > COUNT // 20
