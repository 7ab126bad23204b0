"""Opens a written checkpoint as its users will: in a process of its own, with transformers' ``from_pretrained``."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedModel

from compress.checkpoint.quantized.read import method_of, quantization_of
from compress.checkpoint.source import Source, open_source
from compress.errors import UserError
from compress.models.architecture import predicts_next_token
from compress.runtime.load import load
from compress.system.monitor import return_free_memory
from compress.text.tokenize import encode, load_tokenizer

_LOG = logging.getLogger(__name__)
SENTENCE = "The river rises in the hills, turns south below the old town and reaches the sea after 120 miles."
"""What both models are asked about. On tokens that no text holds together (the first ids of a vocabulary are marks) a model may
stand between two answers, and rounding decides which it gives."""
TOKENS = 16
TOLERANCE = 5e-2
"""Difference of logits in shares of the greatest, at three of four positions: bf16 rounds, and a router between two experts
follows the last bit."""
LARGEST = 4 << 30
"""Bytes of the dense checkpoint up to which :func:`reason_against` finds nothing to say: the model is held twice."""
PACKAGES = {
    "compressed-tensors": "compressed_tensors",
    "bitsandbytes": "bitsandbytes",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
}
"""Quantization method → the package that transformers loads it with."""

_SCRIPT = """
import base64, json, sys
request = json.loads(sys.argv[1])
if request["own"]:
    import compress
import torch, transformers
from safetensors.torch import save

transformers.utils.logging.set_verbosity(50)
model, info = getattr(transformers, request["class"]).from_pretrained(
    request["folder"], dtype="auto", output_loading_info=True, trust_remote_code=request["trusted"]
)
ids = torch.tensor([request["ids"]])
with torch.no_grad():
    said = model.eval()(input_ids=ids)
outputs = (said.logits if "logits" in said else said[0]).float()
print("MISSING" + json.dumps(sorted(map(str, info["missing_keys"]))))
print("OUTPUTS" + base64.b64encode(save({"outputs": outputs.contiguous()})).decode())
"""


def reason_against(folder: Path, source: Source) -> str | None:
    """Why the checkpoint ``folder`` is not opened in a fresh process unless that is asked for; ``None`` where it is.

    Args:
        folder: the compressed checkpoint.
        source: the dense checkpoint that it was made from.
    """
    method = _method(folder, source)
    if other := _other_program(folder, method):
        return other
    package = PACKAGES.get(method)
    if package is not None and find_spec(package) is None:
        return f"transformers needs the package {package} (pip install {package})"
    if sum(info.nbytes for info in source.headers.values()) > LARGEST:
        return (
            f"the model is larger than {LARGEST >> 30} GiB and would be held twice; --fresh-process does it"
        )
    return None


def check_opens(folder: Path, source: Source) -> None:
    """Load the checkpoint ``folder`` in a fresh process and hold its outputs against those of :func:`compress.load`.

    The process imports this package only where the checkpoint is in its own form. It needs memory for the whole model, twice.
    Outputs are logits, or the hidden states of a model that predicts no tokens.

    Raises:
        UserError: transformers does not open the checkpoint, leaves a parameter unset, or computes something else.
    """
    method = _method(folder, source)
    if other := _other_program(folder, method):
        raise UserError(f"{folder} is not for transformers: {other}")
    _LOG.info("opening %s with transformers in a process of its own", folder)
    sentence = _sentence(folder, trusted=source.trust_remote_code)
    return_free_memory()  # what the run and the tokenizer have left, before the whole model is held beside it
    model = load(folder, device="cpu", trust_remote_code=source.trust_remote_code)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    request: dict[str, Any] = {
        "folder": str(folder),
        "class": _auto_class(model),
        "own": method == "compress",
        "trusted": source.trust_remote_code,
        "ids": _ids(sentence, vocabulary),
    }
    ours, modules = _outputs(model, request["ids"]), {name for name, _ in model.named_modules()}
    del model
    return_free_memory()
    theirs, unset = _in_fresh_process(folder, request)
    # A module that the checkpoint never had (the pooler of many BERTs) is not part of the model that was loaded.
    if lost := [name for name in unset if name.rpartition(".")[0] in modules]:
        raise UserError(f"{folder}: transformers leaves {lost[0]} at random values")
    _compare(folder, ours, theirs)


def _method(folder: Path, source: Source) -> str:
    """The quantization method that a checkpoint's configuration names; empty where it names none."""
    quantization = quantization_of(open_source(folder, trust_remote_code=source.trust_remote_code))
    return "" if quantization is None else method_of(quantization)


def _other_program(folder: Path, method: str) -> str | None:
    """Which program opens a checkpoint that transformers is not meant to open."""
    if any(folder.glob("*.gguf")):
        return "a GGUF file is for llama.cpp"
    programs = {"mlx": "mlx_lm opens it", "modelopt": "TensorRT-LLM and vLLM open ModelOpt's format"}
    return f"{programs[method]}, and transformers does not" if method in programs else None


def _auto_class(model: PreTrainedModel) -> str:
    """The name of transformers' class that people open such a model with."""
    if not predicts_next_token(model):
        return "AutoModel"
    if type(model.config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in (
        getattr(model.config, "auto_map", None) or {}
    ):
        return "AutoModelForCausalLM"
    images = type(model.config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return "AutoModelForImageTextToText" if images else "AutoModelForCausalLM"


def _sentence(folder: Path, *, trusted: bool) -> list[int]:
    """The first tokens of :data:`SENTENCE`; none of a checkpoint without a tokenizer."""
    try:
        return list(encode(load_tokenizer(folder, trust_remote_code=trusted), SENTENCE)[:TOKENS])
    except UserError:
        return []


def _ids(sentence: Sequence[int], vocabulary: int) -> list[int]:
    """Token ids below ``vocabulary``: those of the sentence, or where there are none such that are spread over it."""
    spread = range(0, vocabulary, max(1, vocabulary // TOKENS))
    return [one % vocabulary for one in sentence or spread][:TOKENS]


@torch.no_grad()
def _outputs(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """fp32 ``[1, tokens, width]``, by the same rule as in the script."""
    said = model(input_ids=torch.tensor([ids]))
    outputs: Tensor = (said.logits if "logits" in said else said[0]).float()
    return outputs


def _in_fresh_process(folder: Path, request: dict[str, Any]) -> tuple[Tensor, list[str]]:
    """The outputs of the model that a fresh process opens, and the parameters that it found no values for."""
    command = [sys.executable, "-c", _SCRIPT, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
        raise UserError(f"{folder}: transformers does not open it in a fresh process: {last}")
    outputs = load_tensors(base64.b64decode(_line(done.stdout, "OUTPUTS")))["outputs"]
    return outputs, json.loads(_line(done.stdout, "MISSING"))


def _line(printed: str, mark: str) -> str:
    """What follows ``mark`` at the beginning of a line: models may print more than the script does."""
    return next(line for line in printed.splitlines() if line.startswith(mark)).removeprefix(mark)


def _compare(folder: Path, ours: Tensor, theirs: Tensor) -> None:
    by_position = (ours - theirs).abs().amax(-1).flatten() / ours.abs().max().clamp_min(1e-12)
    difference = float(by_position.quantile(0.75))
    if not difference <= TOLERANCE:
        raise UserError(
            f"{folder}: transformers computes something else in a fresh process (relative difference {difference:.2g})"
        )
