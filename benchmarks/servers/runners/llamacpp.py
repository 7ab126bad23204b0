"""llama.cpp behind Python, in an environment of its own (`llama-cpp-py-sync` and numpy).

Where that package's own libraries want a newer libc, those of the npm package ``@node-llama-cpp/linux-x64`` take their place.

python llamacpp.py logits   MODEL.gguf IDS.npy OUT.npy [DTYPE]   IDS int64 [windows, length] → log-probabilities (fp16)
python llamacpp.py quantize SOURCE.gguf OUT.gguf TYPES.json IMATRIX.npz
                                                                its own quantizer, a type for each tensor
python llamacpp.py mix      SOURCE.gguf OUT.gguf NUMBER          one of its own mixes of types, by its number
python llamacpp.py tokenize MODEL.gguf TEXTS.json OUT.json       its own tokenizer
python llamacpp.py generate MODEL.gguf IDS.npy OUT.json COUNT    greedy continuation of each window
python llamacpp.py serve    JOBS.json OUT.jsonl                  the figures that ``children.py`` describes
"""

from __future__ import annotations

import ctypes
import json
import pathlib
import re
import sys
from importlib.metadata import version
from typing import Any

import llama_cpp_py_sync
import numpy as np
from children import answer_all
from llama_cpp_py_sync import Llama
from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

HERE = pathlib.Path(llama_cpp_py_sync.__file__).parent
LIBRARY = next((path.name[9:-3] for path in HERE.glob("libllama.v*.so")), version("llama-cpp-py-sync"))
"""The version of llama.cpp."""
CODES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q2_k": 10, "q3_k": 11, "q4_k": 12,
    "q5_k": 13, "q6_k": 14, "iq4_nl": 20, "iq4_xs": 23, "bf16": 30, "mxfp4": 39,
}  # fmt: skip
MOSTLY_Q4_K_S = 14


def open_backends() -> None:
    """One CPU backend for each processor generation lies beside the library; the best is chosen at run time."""
    for library in HERE.glob("libggml.v*.so"):
        loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        loaded.ggml_backend_load_all_from_path(str(HERE).encode())


def window_logits(llama: Any, window: Any) -> Any:
    """Log-probabilities fp64 ``[length, vocabulary]`` after every token of a window."""
    lib, ffi = get_lib(), get_ffi()
    llama._clear_context_state()
    batch = lib.llama_batch_init(len(window), 0, 1)
    batch.n_tokens = len(window)
    for i, token in enumerate(window):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
        batch.seq_id[i][0] = 0
    if lib.llama_decode(llama._ctx, batch) != 0:
        raise SystemExit("llama_decode failed")
    size = llama.n_vocab if isinstance(llama.n_vocab, int) else llama.n_vocab()
    raw = ffi.buffer(lib.llama_get_logits(llama._ctx), len(window) * size * 4)
    values = np.frombuffer(raw, dtype=np.float32).reshape(len(window), size).astype(np.float64)
    lib.llama_batch_free(batch)
    values = values - values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def open_model(path: str, length: int) -> Any:
    return Llama(path, n_ctx=length + 8, n_batch=length + 8, n_threads=1)


def logits(path: str, ids_path: str, out_path: str, dtype: str = "float16") -> None:
    ids = np.load(ids_path)
    llama = open_model(path, ids.shape[1])
    np.save(out_path, np.stack([window_logits(llama, window).astype(dtype) for window in ids]))


def generate(path: str, ids_path: str, out_path: str, count: str) -> None:
    ids = np.load(ids_path)
    llama = open_model(path, ids.shape[1] + int(count))
    found = []
    for window in ids:
        tokens = list(window)
        for _ in range(int(count)):
            tokens.append(int(window_logits(llama, tokens)[-1].argmax()))
        found.append([int(token) for token in tokens[len(window) :]])
    pathlib.Path(out_path).write_text(json.dumps(found))


def figures(folder: str, ids: Any, job: dict[str, Any]) -> dict[str, Any]:
    """What ``children.py`` asks for, of the file ``model.gguf`` in ``folder``."""
    llama = open_model(f"{folder}/model.gguf", ids.shape[1])
    loss, top1, greedy = 0.0, [], []
    for window in ids:
        found = window_logits(llama, window)[:-1]
        loss -= float(np.take_along_axis(found, window[1:, None], axis=1).sum())
        top1.append([int(token) for token in found.argmax(-1)])
    for window in ids[: job["prompts"]]:
        tokens = list(window[: job["prompt"]])
        for _ in range(job["new"]):
            tokens.append(int(window_logits(llama, tokens)[-1].argmax()))
        greedy.append([int(token) for token in tokens[job["prompt"] :]])
    return {"perplexity": float(np.exp(loss / ids[:, 1:].size)), "top1": top1, "greedy": greedy}


def serve(jobs: str, out: str) -> None:
    sys.argv[1:] = [jobs, out]
    answer_all(LIBRARY, figures)


def tokenize(path: str, texts_path: str, out_path: str) -> None:
    llama = open_model(path, 64)
    texts = json.loads(pathlib.Path(texts_path).read_text(encoding="utf-8"))
    lib, ffi = get_lib(), get_ffi()
    vocabulary = lib.llama_model_get_vocab(llama._model)
    found = []
    for text in texts:
        data = text.encode("utf-8")
        room = ffi.new("llama_token[]", len(data) + 8)
        count = lib.llama_tokenize(vocabulary, data, len(data), room, len(data) + 8, False, False)
        found.append([int(room[i]) for i in range(count)])
    pathlib.Path(out_path).write_text(json.dumps(found))


def quantize(source: str, out: str, types_path: str, imatrix_path: str) -> None:
    lib, ffi = get_lib(), get_ffi()
    lib.llama_backend_init()
    types = json.loads(pathlib.Path(types_path).read_text())
    importance = np.load(imatrix_path)
    kept: list[Any] = []

    def text(value: str) -> Any:
        kept.append(ffi.new("char[]", value.encode()))
        return kept[-1]

    parameters = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    parameters.ftype, parameters.nthread, parameters.pure = MOSTLY_Q4_K_S, 1, True
    overrides = ffi.new("struct llama_model_tensor_override[]", len(types) + 1)
    for i, (name, kind) in enumerate(types.items()):
        overrides[i].pattern, overrides[i].type = text(f"^{re.escape(name)}$"), CODES[kind]
    overrides[len(types)].pattern = ffi.NULL
    entries = ffi.new("struct llama_model_imatrix_data[]", len(importance.files) + 1)
    for i, name in enumerate(importance.files):
        values = np.ascontiguousarray(importance[name], dtype=np.float32).reshape(-1)
        data = ffi.new("float[]", values.tolist())
        kept.append(data)
        entries[i].name, entries[i].data, entries[i].size = text(name), data, values.size
    entries[len(importance.files)].name = ffi.NULL
    for name, field in (
        ("token_embd.weight", "token_embedding_type"),
        ("output.weight", "output_tensor_type"),
    ):
        if name in types:
            setattr(parameters, field, CODES[types[name]])
    parameters.imatrix, parameters.tt_overrides = entries, overrides
    if lib.llama_model_quantize(source.encode(), out.encode(), parameters) != 0:
        raise SystemExit("llama_model_quantize failed")


def mix(source: str, out: str, number: str) -> None:
    lib, ffi = get_lib(), get_ffi()
    lib.llama_backend_init()
    parameters = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    parameters.ftype, parameters.nthread = int(number), 1
    if lib.llama_model_quantize(source.encode(), out.encode(), parameters) != 0:
        raise SystemExit("llama_model_quantize failed")


if __name__ == "__main__":
    open_backends()
    commands = {
        "logits": logits,
        "quantize": quantize,
        "mix": mix,
        "tokenize": tokenize,
        "generate": generate,
        "serve": serve,
    }
    commands[sys.argv[1]](*sys.argv[2:])
