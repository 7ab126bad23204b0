"""Train the embedded default model on the Python standard library.

The model and its tokenizer see nothing but text that every machine with Python has: the sources
and docstrings of the standard library, split into training and held-out sides by file. The model
folder, the text snapshot, the training report and both cards are written by this one script:

    python -m tools.train_embedded --minutes 68 --threads 2
"""

import ast
import copy
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tokenizers
import torch
import transformers
import typer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB, CONTEXT, BATCH = 4096, 256, 8
PEAK_LR, FINAL_FRACTION, WARMUP = 2e-3, 0.1, 0.015
HELDOUT_PERCENT, CALIBRATION_BYTES, HELDOUT_BYTES, DOCUMENT_BYTES = 8, 1_000_000, 400_000, 20_000
SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "turtledemo", "encodings", "__pycache__"}
SKIPPED_FILES = ("html/entities.py", "_sysconfigdata", "config-")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
Mode = tuple[str, bool]  # precision, compiled


def stable(name: str) -> int:
    """Return a number that depends on the text of a name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def library_files() -> list[str]:
    """List the library's sources, relative to its folder, without tests and tables."""
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return [n for n in names if not SKIPPED_FOLDERS & set(n.split("/")) and not n.startswith(SKIPPED_FILES)]


def documents(name: str) -> list[str]:
    """Return a file's source and, as one document of prose, its docstrings."""
    try:
        source = (Path(sysconfig.get_path("stdlib")) / name).read_text("utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        return []
    if name == "pydoc_data/topics.py":  # a table of prose: take the prose
        literals = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        return [text.strip() for text in literals if isinstance(text, str) and len(text) > 200]
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    prose = "\n\n".join(text for text in found if text and len(text) >= 40)
    return [text for text in (source.strip(), prose) if len(text) >= 80]


def held_out(name: str) -> bool:
    """Say on which side of the split a file lies."""
    return stable(name) % 100 < HELDOUT_PERCENT


def snapshot(names: list[str], size: int) -> str:
    """Sample documents by file, in an order fixed by name, up to a size in bytes."""
    taken: list[str] = []
    used = 0
    for name in sorted(names, key=lambda n: stable("snapshot/" + n)):
        for text in documents(name):
            if len(text) > DOCUMENT_BYTES:
                text = text[: text.rindex("\n", 0, DOCUMENT_BYTES)].rstrip()
            taken.append(text)
            used += len(text.encode()) + 2
            if used >= size:
                return "\n\n".join(taken) + "\n"
    return "\n\n".join(taken) + "\n"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that opens every text with <s>."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    settings: dict[str, Any] = {"vocab_size": VOCAB, "special_tokens": ["<s>", "</s>"]}
    settings |= {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    inner.train_from_iterator(texts, trainers.BpeTrainer(**settings))
    markers = {"single": "<s> $A", "pair": "<s> $A <s> $B", "special_tokens": [("<s>", 0)]}
    inner.post_processor = processors.TemplateProcessing(**markers)
    names = {"bos_token": "<s>", "eos_token": "</s>", "model_max_length": 1024}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Encode documents into one stream, each between <s> and </s>."""
    rows = tokenizer.backend_tokenizer.encode_batch(texts)
    return torch.tensor([token for row in rows for token in (*row.ids, 1)], dtype=torch.long)


def windows(stream: Tensor, seed: int) -> Iterator[Tensor]:
    """Yield batches of windows for ever: each epoch cuts the stream at a new offset, in a new order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        shift = int(torch.randint(CONTEXT, (1,), generator=generator))
        count = (len(stream) - shift - 1) // CONTEXT
        starts = shift + CONTEXT * torch.randperm(count, generator=generator)
        for chosen in torch.split(starts, BATCH):
            if len(chosen) == BATCH:
                yield stream[chosen[:, None] + torch.arange(CONTEXT + 1)]


def heldout_windows(tokenizer: PreTrainedTokenizerFast, text: str) -> Tensor:
    """Cut the held-out text into windows without overlap."""
    ids = torch.tensor(tokenizer.backend_tokenizer.encode(text).ids)
    count = (len(ids) - 1) // CONTEXT
    return torch.stack([ids[i * CONTEXT : i * CONTEXT + CONTEXT + 1] for i in range(count)])


def build_model(seed: int) -> LlamaForCausalLM:
    """Build the untrained model, residual projections scaled down by depth."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=768, num_hidden_layers=6,
        num_attention_heads=4, head_dim=64, num_key_value_heads=2, tie_word_embeddings=True,
        max_position_embeddings=1024, rms_norm_eps=1e-6, use_cache=True, bos_token_id=0, eos_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.div_(math.sqrt(2 * config.num_hidden_layers))
    return model


def loss_function(model: LlamaForCausalLM, device: str, mode: Mode) -> Callable[[Tensor], Tensor]:
    """Make the function from a batch of windows to its mean loss, in a precision and compiled or not."""
    precision, compiled = mode

    def loss(batch: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext():
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())

    return torch.compile(loss, dynamic=False) if compiled else loss


def fastest_mode(model: LlamaForCausalLM, batch: Tensor, device: str) -> tuple[Mode, dict[str, int]]:
    """Time a few steps of each way to run the model and name the fastest, in tokens a second."""
    speeds: dict[Mode, float] = {}
    for mode in (("fp32", False), ("bf16", False), ("bf16", True), ("fp32", True)):
        try:
            loss = loss_function(model, device, mode)
            for step in range(10):
                if step == 2:  # warm now
                    begun = time.perf_counter()
                torch.autograd.backward(loss(batch))
            float(loss(batch).detach())
            speeds[mode] = 8 * BATCH * CONTEXT / (time.perf_counter() - begun)
        except Exception as error:  # no compiler on this machine: the other modes remain
            print(f"mode {mode} cannot run here: {type(error).__name__}", flush=True)
        model.zero_grad(set_to_none=True)
    print("tokens/s by mode:", {str(m): round(s) for m, s in speeds.items()}, flush=True)
    named = {f"{m[0]}{'+compile' * m[1]}": round(speed) for m, speed in speeds.items()}
    return max(speeds, key=lambda m: speeds[m]), named


def learning_rate(fraction: float) -> float:
    """Return the rate at a fraction of the budget: a short warmup, then a cosine down."""
    if fraction < WARMUP:
        return PEAK_LR * max(fraction / WARMUP, 0.01)
    angle = math.pi * min((fraction - WARMUP) / (1 - WARMUP), 1.0)
    return PEAK_LR * (FINAL_FRACTION + (1 - FINAL_FRACTION) * (1 + math.cos(angle)) / 2)


def optimizer_of(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """Make AdamW that decays the matrices and leaves the norms alone."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)


@torch.no_grad()
def heldout_loss(
    model: LlamaForCausalLM, held: Tensor, reference: LlamaForCausalLM | None = None
) -> tuple[float, float]:
    """Return the mean held-out loss and the mean KL divergence from a reference, both in nats."""
    device = next(model.parameters()).device
    loss = divergence = 0.0
    for batch in torch.split(held, 16):
        batch = batch.to(device)
        own = model(input_ids=batch[:, :-1], use_cache=False).logits.float().log_softmax(-1).flatten(0, 1)
        loss += float(F.nll_loss(own, batch[:, 1:].flatten(), reduction="sum"))
        if reference is not None:
            other = reference(input_ids=batch[:, :-1], use_cache=False).logits.float().log_softmax(-1)
            divergence += float(F.kl_div(own, other.flatten(0, 1), log_target=True, reduction="sum"))
    count = held.shape[0] * CONTEXT
    return loss / count, divergence / count


def rounded(model: LlamaForCausalLM, bits: int, group: int = 128) -> LlamaForCausalLM:
    """Copy a model with its decoder linears rounded to nearest on asymmetric min-max grids."""
    copied = copy.deepcopy(model)
    top = 2**bits - 1
    for module in copied.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight.data.reshape(-1, group)
            low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
            scale = ((high - low) / top).clamp(min=1e-8)
            zero = (-low / scale).round()
            codes = ((weight / scale).round() + zero).clamp(0, top)
            module.weight.data = ((codes - zero) * scale).reshape(module.weight.shape)
    return copied


def write_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write weights, configuration and tokenizer so that each file appears whole."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".writing-") as folder:
        copy.deepcopy(model).cpu().bfloat16().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        settings = Path(folder) / "tokenizer_config.json"
        entries = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings.write_text(json.dumps(entries, indent=2) + "\n")
        for path in sorted(Path(folder).iterdir()):
            path.chmod(0o644)
            os.replace(path, output / path.name)


def train(model: LlamaForCausalLM, stream: Tensor, held: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """Train for the budget of wall-clock minutes and return the curve and the counts."""
    device, budget, scratch = options["device"], 60 * options["minutes"], options["scratch"]
    batches = windows(stream, options["seed"])
    mode, speeds = fastest_mode(model, next(batches).to(device), device)
    loss_of, optimizer = loss_function(model, device, mode), optimizer_of(model)
    curve: list[dict[str, float]] = []
    recent: list[Tensor] = []
    steps, saved, previewed, begun = 0, 0.0, False, time.monotonic()
    while (elapsed := time.monotonic() - begun) < budget:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(elapsed / budget)
        loss = loss_of(next(batches).to(device))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.detach())
        steps += 1
        if elapsed - (curve[-1]["seconds"] if curve else 0.0) >= budget / 40:
            held_loss, _ = heldout_loss(model, held[:: max(1, len(held) // 64)])
            counts = {"seconds": elapsed, "tokens": steps * BATCH * CONTEXT}
            point = {**counts, "training": float(torch.stack(recent).mean()), "heldout": held_loss}
            curve.append({key: round(value, 4) for key, value in point.items()})
            recent = []
            print(json.dumps(curve[-1]), flush=True)
        if elapsed - saved > 300:
            torch.save({"model": model.state_dict(), "steps": steps}, scratch / "checkpoint.tmp")
            os.replace(scratch / "checkpoint.tmp", scratch / "checkpoint.pt")
            saved = elapsed
        if not previewed and elapsed > 60 * options["preview_after"]:
            options["preview"](model)
            previewed = True
    return {
        "mode": f"{mode[0]}{'+compile' * mode[1]}", "modes_tokens_per_second": speeds, "steps": steps,
        "tokens_seen": steps * BATCH * CONTEXT, "seconds": time.monotonic() - begun, "curve": curve,
    }  # fmt: skip


def processor_name() -> str:
    """Name this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine())


def rounding_table(model: LlamaForCausalLM, held: Tensor) -> dict[str, dict[str, float]]:
    """Measure what rounding to nearest at 4, 3 and 2 bits does to the model."""
    table = {}
    for bits in (4, 3, 2):
        loss, divergence = heldout_loss(rounded(model, bits), held, model)
        table[str(bits)] = {"kl_nats": round(divergence, 5), "perplexity": round(math.exp(loss), 3)}
    return table


MODEL_CARD = """\
---
license: apache-2.0
language:
- en
library_name: transformers
pipeline_tag: text-generation
---

# The embedded model

A Llama-shaped language model of {parameters:,} parameters with its own byte-level BPE tokenizer of
{vocabulary} tokens, trained from nothing by `tools/train_embedded.py` on the Python standard
library: sources and docstrings, split by file. It completes Python and the prose around it, badly; it
exists so that every recipe can be run and ranked on any machine in minutes, without a download.

- Training: {tokens_seen:,} tokens in {minutes:.1f} minutes ({date}, {processor}, {threads} threads).
- Held-out perplexity at context {context}: **{perplexity:.3f}** on `{text}/heldout.txt`.
- Rounding its decoder linears to nearest (asymmetric, groups of 128) costs, held out:

| bits | KL from the original, nats/token | perplexity |
|---|---|---|
{rows}

Retrain with `python -m tools.train_embedded --minutes {budget:g} --threads {threads}`; the figures
depend on the machine's speed, since the budget is wall-clock time. `training.json` holds the full report.

The model is under Apache-2.0, as Compress is (its `LICENSE`). Its training text is the source of Python {python}, copyright
Python Software Foundation, under the PSF licence version 2 (see `{text}/LICENSE.txt`).
"""

TEXT_CARD = """\
# Text from the Python standard library

`calibration.txt` and `heldout.txt` are excerpts of the standard library of Python {python}: sources as
they stand, and for each file its docstrings as one document of prose; documents over {limit:,}
characters are cut at a line. A blank line stands between documents. The files are split by a hash of
their path, about {percent}% held out, so that no file has text on both sides; the embedded model was
trained on the side that `calibration.txt` samples and never saw the files of `heldout.txt`.

Made by `tools/train_embedded.py`, which gives the same bytes again for the same Python version.

{notice} All rights reserved. Distributed under the PSF licence
agreement version 2 (`LICENSE.txt`), unless a module's own text says otherwise.
"""


def write_text(names: list[str], folder: Path) -> str:
    """Write the text snapshot with its card and return the held-out text."""
    folder.mkdir(parents=True, exist_ok=True)
    calibration = snapshot([n for n in names if not held_out(n)], CALIBRATION_BYTES)
    heldout = snapshot([n for n in names if held_out(n)], HELDOUT_BYTES)
    (folder / "calibration.txt").write_text(calibration, "utf-8")
    (folder / "heldout.txt").write_text(heldout, "utf-8")
    licence = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    if licence.exists():  # some distributions keep it elsewhere
        shutil.copyfile(licence, folder / "LICENSE.txt")
    facts = {"python": platform.python_version(), "limit": DOCUMENT_BYTES, "percent": HELDOUT_PERCENT}
    card = TEXT_CARD.format(**facts, notice=sys.copyright.splitlines()[0])
    (folder / "README.md").write_text(card, "utf-8")
    return heldout


def write_report(report: dict[str, Any], output: Path, text: Path) -> None:
    """Write the training report and the model card."""
    (output / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    table = report["rounding"].items()
    rows = "\n".join(f"| {bits} | {row['kl_nats']:.4f} | {row['perplexity']:.3f} |" for bits, row in table)
    card = MODEL_CARD.format(**report, rows=rows, text=text.name, vocabulary=VOCAB)
    (output / "README.md").write_text(card, "utf-8")


def main(
    output: Annotated[Path, typer.Option(help="Folder of the model.")] = Path("compress/assets/embedded"),
    text_output: Annotated[Path, typer.Option(help="Folder of the text.")] = Path("compress/assets/text"),
    minutes: Annotated[float, typer.Option(help="Wall-clock budget of the training.")] = 68.0,
    threads: Annotated[int, typer.Option(help="Threads of the processor.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    scratch: Annotated[Path | None, typer.Option(help="Folder of checkpoints.")] = None,
    preview_after: Annotated[float, typer.Option(help="Minutes before an early version is written.")] = 5.0,
) -> None:
    """Train the embedded model and write it with its text, its tokenizer and its report."""
    torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    names = library_files()
    texts = [text for name in names if not held_out(name) for text in documents(name)]
    heldout = write_text(names, text_output)
    tokenizer = train_tokenizer(texts)
    stream, held = token_stream(tokenizer, texts), heldout_windows(tokenizer, heldout)
    print(f"{len(texts)} documents, {len(stream)} training tokens, {held.numel()} held out", flush=True)
    model = torch.nn.Module.to(build_model(seed), device)
    folder = scratch or Path(tempfile.mkdtemp(prefix="embedded-"))
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "device": device, "minutes": minutes, "seed": seed, "scratch": folder,
        "preview_after": preview_after, "preview": lambda model: write_model(model, tokenizer, output),
    }  # fmt: skip
    run = train(model, stream, held.to(device), options)
    torch.save(model.state_dict(), folder / "final.pt")
    write_model(model, tokenizer, output)
    final = torch.nn.Module.to(LlamaForCausalLM.from_pretrained(output, dtype=torch.float32), device)
    loss, _ = heldout_loss(final, held)
    report = {
        "heldout_loss": round(loss, 5), "perplexity": round(math.exp(loss), 4), "context": CONTEXT,
        "heldout_tokens": held.shape[0] * CONTEXT, "rounding": rounding_table(final, held),
        "parameters": sum(p.numel() for p in final.parameters()), "minutes": round(run["seconds"] / 60, 2),
        "budget": minutes, "tokens_per_second": round(run["tokens_seen"] / run["seconds"]),
        "training_tokens": len(stream), "epochs": round(run["tokens_seen"] / len(stream), 2),
        "training_files": sum(not held_out(n) for n in names), "heldout_files": sum(map(held_out, names)),
        "training_bytes": sum(len(t.encode()) for t in texts), "heldout_bytes": len(heldout.encode()),
        "batch": BATCH, "peak_learning_rate": PEAK_LR, "seed": seed, "threads": threads, "device": device,
        "processor": processor_name() if device == "cpu" else torch.cuda.get_device_name(),
        "date": datetime.now(UTC).date().isoformat(), "python": platform.python_version(),
        "torch": torch.__version__, "transformers": transformers.__version__, **run,
    }  # fmt: skip
    write_report(report, output, text_output)
    if scratch is None:
        shutil.rmtree(folder)
    print(json.dumps({k: v for k, v in report.items() if k != "curve"}, indent=2), flush=True)


if __name__ == "__main__":
    typer.run(main)
