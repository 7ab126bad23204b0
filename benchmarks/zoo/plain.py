"""Opens checkpoints in plain transformers, in processes that never import this project's packages.

A server: a line of JSON names the folder of a checkpoint and the file for its logits; a forked process loads it, and a line of
JSON answers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import import_module
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

TOKENS = torch.arange(2, 26).view(2, 12) * 7 % 256
"""The tokens whose logits are compared, int64 `[2, 12]`."""


def logits(model: Any) -> torch.Tensor:
    """fp32 `[2, 12, vocabulary]`."""
    with torch.no_grad():
        found = model.eval()(input_ids=TOKENS, use_cache=False).logits.float()
    return found.contiguous()


def open_plain(folder: str, file: str, dtype: str, auto: str) -> dict[str, Any]:
    """Load a checkpoint in `dtype` ("auto" is its own) by the class `auto` and write its logits; what transformers found
    missing or left over."""
    model, info = getattr(transformers, auto).from_pretrained(folder, dtype=dtype, output_loading_info=True)
    save_file({"logits": logits(model)}, file)
    if any(name.partition(".")[0] in ("compress", "compress_kernels") for name in sys.modules):
        raise AssertionError("this process has imported the project under test")
    keys = ("missing_keys", "mismatched_keys", "unexpected_keys")
    return {key: sorted(map(str, info[key]))[:3] for key in keys if info.get(key)}


def in_child(work: Any, seconds: int) -> dict[str, Any]:
    """The result of `work()` in a forked process, or `{"error": …}`; it is stopped after so many seconds."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        signal.alarm(seconds)
        torch.set_num_threads(1)  # here, never before: a pool of threads does not survive a fork
        try:
            answer = work()
        except BaseException as error:  # whatever a model's code raises is the answer
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
        with os.fdopen(write, "w") as pipe:
            pipe.write(json.dumps(answer))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    if not text:
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
        return {"error": f"stopped after {seconds} s" if killed else f"died with status {status}"}
    result: dict[str, Any] = json.loads(text)
    return result


def warm() -> None:
    """Import and fill in the parent what every child would else do by itself."""
    import_module("compressed_tensors.compressors")
    import_module("transformers.integrations.compressed_tensors")
    import_module("bitsandbytes")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=256
    )
    logits(transformers.AutoModelForCausalLM.from_config(config))


def main() -> None:
    """Serve until the input ends."""
    transformers.utils.logging.set_verbosity(50)
    transformers.utils.logging.disable_progress_bar()
    warm()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what model code prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        answer = in_child(lambda r=request: open_plain(**r), 60)
        print(json.dumps({**answer, "folder": request["folder"]}), file=answers, flush=True)


if __name__ == "__main__":
    main()
