"""The same figures as ``llamacpp.py`` measures, of a checkpoint by vLLM's CPU wheel: one line of JSON.

``python served_by_vllm.py measure FOLDER THREADS PROMPT NEW REPEATS``, in an environment that has vLLM.
"""

from __future__ import annotations

import json
import os
import sys

from clocks import SHORT, WARM, now, prompt_of, resident, since  # type: ignore[import-not-found]

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def measure(folder: str, threads: int, prompt: int, new: int, repeats: int) -> dict[str, object]:
    """Load, the first token, then prompts of ``prompt`` tokens, and ``new`` tokens after short prompts."""
    os.environ.update(SETTINGS, VLLM_CPU_OMP_THREADS_BIND="0" if threads == 1 else f"0-{threads - 1}")
    from vllm import LLM, SamplingParams  # noqa: PLC0415

    before, start = resident(), now()
    served = LLM(
        model=folder,
        dtype="bfloat16",
        max_model_len=prompt + new + 2 * WARM,
        max_num_seqs=1,
        enable_prefix_caching=False,
    )

    def generated(ids: list[int], tokens: int) -> list[float]:
        began = now()
        settings = SamplingParams(max_tokens=tokens, min_tokens=tokens, temperature=0, ignore_eos=True)
        served.generate([{"prompt_token_ids": ids}], settings, use_tqdm=False)
        return list(since(began))

    ids = prompt_of(prompt)
    generated(ids[:SHORT], 1)
    first = since(start)
    prefill, decode = [], []
    for _ in range(repeats):
        prefill.append(generated(ids, 1))
        short, long = generated(ids[:SHORT], 1 + WARM), generated(ids[:SHORT], 1 + WARM + new)
        decode.append([whole - part for whole, part in zip(long, short, strict=True)])
    after = resident()
    return {
        "first_token": first,
        "prefill": prefill,
        "decode": decode,
        "resident": {key: after[key] - before[key] for key in after},
        "note": None,
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[2], *map(int, sys.argv[3:7]))))
