"""A small trained mixture of experts: ``python -m benchmarks.quality.upcycled FOLDER``.

The embedded model is upcycled: every expert of a Mixtral begins as a copy of the block's FFN with noise on its weights and its
neurons in an order of their own, the routers begin at random, and all of it is trained on the embedded calibration text, by
AdamW on the next token and Mixtral's balance of load. One thread makes a few hundred steps in ten minutes: the experts become
different, which is all that a comparison of ways to have fewer of them needs.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from compress.assets import embedded_model, embedded_text
from compress.evaluation.windows import text_windows

EXPERTS, CHOSEN = 8, 2
LENGTH, BATCH = 128, 8


def upcycled(noise: float, seed: int) -> MixtralForCausalLM:
    """The embedded model in fp32, each of its FFNs eight times over.

    Args:
        noise: deviation of what is added to a weight of an expert, as a share of that of the weights.
        seed: of the noise, the orders of the neurons, and the routers.
    """
    dense = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=torch.float32)
    old = dense.config
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "head_dim",
    )
    same += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_parameters")
    same += ("bos_token_id", "eos_token_id", "tie_word_embeddings")
    torch.manual_seed(seed)
    config = MixtralConfig(
        **{name: getattr(old, name) for name in same},
        num_local_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        sliding_window=None,
        dtype="float32",
    )
    model = MixtralForCausalLM(config).float()
    weights = {name: tensor for name, tensor in dense.state_dict().items() if ".mlp." not in name}
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        for layer, other in zip(model.model.layers, dense.model.layers, strict=True):
            gate, up, down = (getattr(other.mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
            for expert in range(EXPERTS):
                order = torch.randperm(len(gate))
                layer.mlp.experts.gate_up_proj[expert] = torch.cat(
                    [_noisy(gate, noise)[order], _noisy(up, noise)[order]]
                )
                layer.mlp.experts.down_proj[expert] = _noisy(down, noise)[:, order]
    return model


def train(model: MixtralForCausalLM, windows: Tensor, steps: int, rate: float, seed: int) -> list[float]:
    """Train on windows drawn at random; the losses of the steps, in nats a token.

    Args:
        model: in fp32; changed in place.
        windows: int64 ``[windows, length]``.
        steps: of :data:`BATCH` windows.
        rate: the highest learning rate, after a twentieth of the steps; it falls to nothing by half a cosine.
        seed: of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    losses = []
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(20 * (step + 1) / steps, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        batch = windows[torch.randint(len(windows), (BATCH,), generator=generator)]
        found = model(batch, labels=batch, output_router_logits=True)
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float((found.loss - model.config.router_aux_loss_coef * found.aux_loss).detach()))
    model.eval()
    return losses


def main() -> None:
    """Make the mixture, and say how long it took and what became of the loss."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    text = embedded_text("calibration").read_text(encoding="utf-8")
    windows = text_windows(text, tokenizer, length=LENGTH)
    model = upcycled(arguments.noise, arguments.seed)
    start = time.monotonic()
    losses = train(model, windows, arguments.steps, arguments.rate, arguments.seed)
    model.to(torch.bfloat16).save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)
    ends = [sum(part) / len(part) for part in (losses[:20], losses[-20:])]
    print(
        f"{arguments.steps} steps in {time.monotonic() - start:.0f} s; loss {ends[0]:.3f} at first, {ends[1]:.3f} at last"
    )


def _noisy(weight: Tensor, noise: float) -> Tensor:
    return weight + noise * weight.std() * torch.randn_like(weight)


if __name__ == "__main__":
    main()
