"""Runs llama.cpp in an environment that has ``llama_cpp_py_sync`` and nothing of ours, for ``benchmarks/speed/llamacpp.py``.

python llamacpp.py measure MODEL.gguf THREADS PROMPT NEW REPEATS     one line of JSON
python llamacpp.py turns MODEL.gguf THREADS                          a line for every line, for ``turns.py``
python llamacpp.py quantize SOURCE.gguf OUT.gguf TYPE                llama.cpp's own quantizer
"""

import ctypes
import json
import os
import pathlib
import sys

import llama_cpp_py_sync
from clocks import SHORT, TURN, WARM, answer, now, prompt_of, resident, since
from llama_cpp_py_sync import Llama
from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

HERE = pathlib.Path(llama_cpp_py_sync.__file__).parent
TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K_M": 15}


def choose_backend():
    """The build of ggml for this CPU, where the libraries of node-llama-cpp lie beside the bindings."""
    for each in HERE.glob("libggml.v*.so"):
        library = ctypes.CDLL(str(each), mode=ctypes.RTLD_GLOBAL)
        library.ggml_backend_load_all_from_path(str(HERE).encode())


def measure(path, threads, prompt, new, repeats):
    before, start = resident(), now()
    # Memory mapping as llama.cpp does it by itself; the cache has the size that is used.
    llama = Llama(path, n_ctx=prompt + 64, n_batch=prompt, n_threads=threads, n_threads_batch=threads)
    ids = prompt_of(prompt)
    llama._eval_tokens(ids[:SHORT], 0)
    llama._sample_token()
    first = since(start)
    prefill, decode = [], []
    for _ in range(repeats):
        llama._clear_context_state()
        start = now()
        llama._eval_tokens(ids, 0)
        prefill.append(since(start))
        llama._clear_context_state()
        past = llama._eval_tokens(ids[:SHORT], 0)
        for i in range(WARM + new):
            if i == WARM:
                start = now()
            past = llama._eval_tokens([llama._sample_token()], past)
        decode.append(since(start))
    after = resident()
    held = {key: after[key] - before[key] for key in after}
    print(json.dumps({"first_token": first, "prefill": prefill, "decode": decode, "resident": held}))


def turns(path, threads):
    llama = Llama(
        path, n_ctx=SHORT + WARM + TURN + 8, n_batch=SHORT, n_threads=threads, n_threads_batch=threads
    )

    def decode():
        llama._clear_context_state()
        past = llama._eval_tokens(prompt_of(SHORT), 0)
        for i in range(WARM + TURN):
            if i == WARM:
                start = now()
            past = llama._eval_tokens([llama._sample_token()], past)
        return since(start)

    answer(decode)


def quantize(source, out, kind):
    lib, ffi = get_lib(), get_ffi()
    lib.llama_backend_init()
    settings = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    settings.ftype, settings.allow_requantize, settings.nthread = TYPES[kind], True, 1
    if lib.llama_model_quantize(source.encode(), out.encode(), settings) != 0:
        sys.exit(f"llama.cpp does not quantize {os.path.basename(source)} to {kind}")


if __name__ == "__main__":
    choose_backend()
    if sys.argv[1] == "measure":
        measure(sys.argv[2], *map(int, sys.argv[3:7]))
    elif sys.argv[1] == "turns":
        turns(sys.argv[2], int(sys.argv[3]))
    else:
        quantize(*sys.argv[2:5])
