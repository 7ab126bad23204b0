"""Opens a written checkpoint as its users will: in a process of its own, with transformers' ``from_pretrained``."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from compress.checkpoint.source import Source, open_source
from compress.errors import UserError
from compress.runtime.load import load

TOKENS = 16
TOLERANCE = 5e-2
"""Difference of logits in shares of the greatest, at three of four positions: bf16 rounds, and a router between two experts
follows the last bit."""

_SCRIPT = """
import json, sys
request = json.loads(sys.argv[1])
if request["own"]:
    import compress
import torch, transformers
from safetensors.torch import save_file
transformers.utils.logging.set_verbosity(50)
model, info = transformers.AutoModelForCausalLM.from_pretrained(
    request["folder"], dtype="auto", output_loading_info=True, trust_remote_code=request["trusted"]
)
ids = torch.arange(request["tokens"]).unsqueeze(0) % request["vocabulary"]
with torch.no_grad():
    logits = model.eval()(input_ids=ids, use_cache=False).logits.float()
save_file({"logits": logits.contiguous()}, request["file"])
print("MISSING" + json.dumps(sorted(map(str, info["missing_keys"]))))
"""


def check_opens(folder: Path, source: Source) -> None:
    """Load the checkpoint ``folder`` in a fresh process and hold its logits against those of :func:`compress.load`.

    The process imports this package only where the checkpoint is in its own form. It needs memory for the whole model, twice.

    Raises:
        UserError: transformers does not open the checkpoint, leaves a parameter unset, or computes something else.
    """
    written = open_source(folder, trust_remote_code=source.trust_remote_code)
    method = (written.config.get("quantization_config") or {}).get("quant_method")
    if "quantization" in written.config and method is None:
        raise UserError(f"{folder} is in MLX's format, which mlx_lm opens and transformers does not")
    model = load(folder, device="cpu", trust_remote_code=source.trust_remote_code)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(TOKENS).unsqueeze(0) % vocabulary
    with torch.no_grad():
        ours = model(input_ids=ids, use_cache=False).logits.float()
    del model
    with tempfile.TemporaryDirectory(prefix="compress-open-") as place:
        file = Path(place) / "logits.safetensors"
        request = {
            "folder": str(folder),
            "own": method == "compress",
            "trusted": source.trust_remote_code,
            "tokens": TOKENS,
            "vocabulary": vocabulary,
            "file": str(file),
        }
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, json.dumps(request)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
            raise UserError(f"{folder}: transformers does not open it in a fresh process: {last}")
        theirs = load_file(file)["logits"]
    told = next(line for line in done.stdout.splitlines() if line.startswith("MISSING"))
    if missing := json.loads(told.removeprefix("MISSING")):
        raise UserError(f"{folder}: transformers leaves {missing[0]} at random values")
    by_position = (ours - theirs).abs().amax(-1).flatten() / ours.abs().max().clamp_min(1e-12)
    difference = float(by_position.quantile(0.75))
    if not difference <= TOLERANCE:
        raise UserError(
            f"{folder}: transformers computes something else in a fresh process (relative difference {difference:.2g})"
        )
