"""``python run_autoround_bits.py JOB.json``: AutoRound's AutoScheme chooses the bits of every layer, AutoRound tunes them.

The job names ``model``, ``text`` (a JSON list of ``{"text"}``, each longer than ``length`` tokens), ``out``, ``bits`` (on
average, scales and zero points counted), ``group``, ``samples``, ``length``, ``iterations`` and ``seed``. ``out`` gets the
decoded weights as a plain checkpoint, and ``bits.json`` the bits of every layer.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from auto_round import AutoRound, AutoScheme
from auto_round.schemes import QuantizationScheme
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

CHOICES = (2, 3, 4, 8)


def main() -> None:
    """Choose, tune, save."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto")
    options = [
        QuantizationScheme(bits=bits, group_size=job["group"], sym=False, data_type="int", act_bits=16)
        for bits in CHOICES
    ]
    drawn = {"nsamples": job["samples"], "seqlen": job["length"], "enable_torch_compile": False}
    tuned = AutoRound(
        model,
        AutoTokenizer.from_pretrained(job["model"]),
        scheme=AutoScheme(
            avg_bits=job["bits"], options=options, dataset=job["text"], device_map="cpu", **drawn
        ),
        dataset=job["text"],
        batch_size=8,
        iters=job["iterations"],
        device_map="cpu",
        seed=job["seed"],
        **drawn,
    )
    tuned.quantize()
    modules = dict(tuned.model.named_modules())
    chosen = {name: int(one.bits) for name, one in modules.items() if getattr(one, "bits", 16) < 16}
    out = Path(job["out"])
    out.mkdir(parents=True)
    for file in Path(job["model"]).glob("*.json"):
        shutil.copy(file, out)
    names = dict(AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto").named_parameters())
    weights = tuned.model.state_dict()
    save_file(
        {name: weights[name].to(one.dtype).contiguous() for name, one in names.items()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    (out / "bits.json").write_text(json.dumps(chosen), encoding="utf-8")


if __name__ == "__main__":
    main()
