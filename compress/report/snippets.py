"""Code that loads an output, for each program that reads it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from compress.formats.gguf.architectures import ARCHITECTURES
from compress.formats.served import measured
from compress.report.schema import Report


@dataclass(frozen=True)
class Snippet:
    """Code by which a program loads the checkpoint."""

    name: str
    code: str


def snippets(report: Report, folder: str) -> list[Snippet]:
    """Code that loads `folder`, for each program that reads the format."""
    path = json.dumps(folder, ensure_ascii=False)
    python = f"from compress import load\n\nmodel = load({path})"
    architecture = report.source.architecture
    language_model = architecture.endswith(("ForCausalLM", "LMHeadModel"))
    cls = "AutoModelForCausalLM" if language_model else architecture
    plain = (
        f"from transformers import {cls}, AutoTokenizer\n\n"
        f'model = {cls}.from_pretrained({path}, dtype="auto")\n'
        f"tokenizer = AutoTokenizer.from_pretrained({path})"
    )
    out = []
    if "transformers" in report.format.servers:
        needs = _NEEDS.get(report.format.name, "")
        said = _measured_in(report, "transformers")
        out.append(Snippet("transformers", f"# pip install transformers{needs}\n{said}{plain}"))
    elif report.format.name == "native":
        out.append(Snippet("transformers", "import compress  # teaches transformers the format\n" + plain))
    out.append(Snippet("Python", python))
    if "vllm" in report.format.servers:
        out.append(Snippet("vLLM", f"{_measured_in(report, 'vllm')}vllm serve {_shell(folder)}"))
    if report.format.name in _EXPORTED and _is_in_gguf(report):
        file = _shell(f"{folder}-gguf/model.gguf")
        export = f"compress export {_shell(folder)} --format gguf -o {_shell(f'{folder}-gguf')}"
        out.append(Snippet("llama.cpp", f"{export}\nllama-cli -m {file}"))
    out.append(Snippet("verify", f"compress verify {_shell(folder)} --source {_shell(report.source.name)}"))
    return out


def _measured_in(report: Report, server: str) -> str:
    """A line where a server was not measured to read what this recipe writes; empty where it was."""
    said = measured(report.recipe_name, report.format.name, server)
    return {
        "read": "",
        "failed": f"# {server} failed to read what this recipe writes when that was measured, in its build for CPUs\n",
        "not measured": f"# {server} was not given what this recipe writes: it should read it\n",
    }[said]


def _is_in_gguf(report: Report) -> bool:
    """Whether llama.cpp was measured to read what this recipe's codes become, and knows the model's family."""
    family = re.sub("(ForCausalLM|LMHeadModel)$", "", report.source.architecture).lower()
    known = {kind.replace("_", "").removesuffix("text") for kind in ARCHITECTURES}
    return family in known and measured(report.recipe_name, "gguf", "llama.cpp") == "read"


_EXPORTED = frozenset({"compressed-tensors", "gptq", "awq"})
"""Formats of integers, which `compress export` carries over with their codes."""

_NEEDS = {
    "compressed-tensors": " compressed-tensors",
    "bitsandbytes": " bitsandbytes",
    "gptq": " optimum gptqmodel",
    "awq": " gptqmodel",
}
"""Format → what transformers needs beside itself to open it."""


def _shell(word: str) -> str:
    safe = word.replace("'", "'\\''")
    return word if word and all(c.isalnum() or c in "-_./" for c in word) else f"'{safe}'"
