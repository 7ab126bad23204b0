"""Learns the rotation of the residual stream on calibration data (SpinQuant, arXiv:2405.16406, equation 2).

The loss is the divergence of the model with rounded inputs from the model itself; roundings pass gradients straight through.
Weights are not rounded: solvers that follow make up for most of that error, as the paper finds (section 4.3.4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from compress_kernels.activations import ActivationScheme, fake_quantize
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compress.calibrate.whole_model import check_fits
from compress.errors import UserError
from compress.models.architecture import require_next_token_loss
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.transforms.cayley import cayley_step
from compress.transforms.orthogonal import mean_basis
from compress.transforms.rotation import Learned, Rotation, RotationPlan
from compress.transforms.tracing import Rotatable

TOKENS = 512
"""Tokens of a step."""


@dataclass(frozen=True)
class Rounded:
    """A layer whose inputs are rounded.

    Attributes:
        view: its weight.
        scheme: how.
        rotated: whether it reads the residual stream.
    """

    view: WeightView
    scheme: ActivationScheme
    rotated: bool


def rounded_layers(space: Rotatable, schemes: Mapping[WeightView, ActivationScheme | None]) -> list[Rounded]:
    """The linear layers with rounded inputs; those of experts, which are no modules, are left out.

    Args:
        space: the residual stream.
        schemes: weight → how its inputs are rounded.
    """
    readers = {one.parameter for one in space.readers}
    by_module = {
        view.module: Rounded(view, scheme, view.parameter in readers)
        for view, scheme in schemes.items()
        if scheme is not None and view.kind in ("linear", "conv1d")
    }
    return list(by_module.values())


def learned_plan(
    skeleton: Skeleton,
    plan: RotationPlan,
    settings: Rotation,
    schemes: Mapping[WeightView, ActivationScheme | None],
    tokens: Tensor,
    *,
    device: torch.device | str,
    folder: Path,
) -> RotationPlan:
    """The plan with a learned matrix for the residual stream.

    Args:
        skeleton: the model, rotated as ``plan`` says.
        plan: with a Hadamard matrix.
        settings: steps and rate.
        schemes: weight → how its inputs are rounded.
        tokens: int64 ``[samples, length]``.
        device: where the model is held.
        folder: keeps the matrix, for a run that goes on.

    Raises:
        UserError: as :func:`learn_rotation`.
    """
    rotated = plan.residual
    assert rotated is not None
    file = folder / "residual.safetensors"
    if file.is_file():
        kept = load_file(str(file))
        matrix, losses = kept["matrix"], kept["losses"]
    else:
        seen: list[float] = []
        layers = rounded_layers(rotated.space, schemes)
        matrix = learn_rotation(
            skeleton,
            rotated.space,
            layers,
            tokens,
            steps=settings.steps,
            rate=settings.rate,
            device=device,
            progress=seen.append,
        )
        losses = torch.tensor(seen)
        save_file({"matrix": matrix.contiguous(), "losses": losses}, str(file))
    label = f"{rotated.matrix.label}, then learned"
    learned = replace(rotated, matrix=rotated.matrix.then(matrix, label))
    ends = max(1, len(losses) // 6)
    return replace(
        plan,
        residual=learned,
        learned=Learned(
            hashlib.sha256(matrix.numpy().tobytes()).hexdigest(),
            float(losses[:ends].mean()),
            float(losses[-ends:].mean()),
        ),
    )


def learn_rotation(
    skeleton: Skeleton,
    space: Rotatable,
    layers: list[Rounded],
    tokens: Tensor,
    *,
    steps: int,
    rate: float,
    device: torch.device | str,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """The matrix ``[n, n]``, fp64, that a rotated residual stream is to be multiplied by once more.

    Args:
        skeleton: the model, rotated by a Hadamard matrix already; no block may be loaded.
        space: its residual stream.
        layers: whose inputs are rounded, from :func:`rounded_layers`.
        tokens: int64 ``[samples, length]``; each step takes :data:`TOKENS` of them.
        steps, rate: Cayley steps, and the first learning rate, which falls to zero.
        device: where the whole model is held, in fp32.
        progress: is given each step's loss.

    Raises:
        UserError: no layer that reads the stream has rounded inputs, the model predicts no tokens or does not fit, or its
            loss is not finite.
    """
    require_next_token_loss(skeleton.model, "transforms: rotation: a learned rotation is that of")
    if not any(layer.rotated for layer in layers):
        raise UserError(
            "transforms: rotation: 'residual: learned' is for steps that round 'activations' of linear layers: take 'hadamard'"
        )
    check_fits(skeleton, torch.device(device), torch.float32, "A learned rotation takes gradients of it")
    inner = space.size - 1 if space.keeps_mean else space.size
    basis = mean_basis(space.size).to(device=device, dtype=torch.float32) if space.keeps_mean else None
    matrix = torch.eye(inner, dtype=torch.float64, device=device)
    batches = _batches(tokens)
    with skeleton.loaded_whole(device=device, dtype=torch.float32):
        skeleton.model.eval()
        for step in range(steps):
            ids = batches[step % len(batches)].to(device)
            leaf = matrix.float().requires_grad_(True)
            loss = _loss(skeleton, layers, ids, _whole(leaf, basis))
            (gradient,) = torch.autograd.grad(loss, [leaf])
            try:
                matrix = cayley_step(matrix, gradient, rate * (1 - step / steps))
            except ValueError as error:
                raise UserError(f"transforms: rotation: {error}: take 'residual: hadamard'") from error
            if progress is not None:
                progress(float(loss.detach()))
    return _whole(matrix, None if basis is None else basis.double()).cpu()


def _batches(tokens: Tensor) -> list[Tensor]:
    """``[rows, length]`` of about :data:`TOKENS` tokens each."""
    length = min(tokens.shape[1], TOKENS)
    rows = max(1, TOKENS // length)
    return list(tokens[:, :length].split(rows))


def _whole(matrix: Tensor, basis: Tensor | None) -> Tensor:
    """The matrix ``[n, n]``; of one ``[n − 1, n − 1]`` that which keeps the vector of ones, the basis' first column."""
    if basis is None:
        return matrix
    rest = basis[:, 1:]
    return torch.outer(basis[:, 0], basis[:, 0]) + rest @ matrix @ rest.T


def _loss(skeleton: Skeleton, layers: list[Rounded], ids: Tensor, matrix: Tensor) -> Tensor:
    """KL divergence from the dense model, in nats by token."""
    with torch.no_grad():
        dense = F.log_softmax(_logits(skeleton, ids), dim=-1)
    with _rounding(skeleton, layers, matrix), torch.enable_grad():
        rounded = F.log_softmax(_logits(skeleton, ids), dim=-1)
        return F.kl_div(rounded, dense, reduction="batchmean", log_target=True)


def _logits(skeleton: Skeleton, ids: Tensor) -> Tensor:
    logits: Tensor = skeleton.model(input_ids=ids, use_cache=False).logits
    return logits.flatten(0, -2).float()


@contextmanager
def _rounding(skeleton: Skeleton, layers: list[Rounded], matrix: Tensor) -> Iterator[None]:
    """Round the inputs of the layers, those of the residual stream in the basis that ``matrix`` gives it."""
    with ExitStack() as stack:
        for layer in layers:
            module = skeleton.model.get_submodule(layer.view.module)
            hook = partial(_round_input, layer.scheme, matrix if layer.rotated else None)
            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _round_input(
    scheme: ActivationScheme, matrix: Tensor | None, module: nn.Module, args: tuple[Any, ...]
) -> tuple[Any, ...]:
    x = args[0]
    turned = x if matrix is None else x @ matrix.to(x.dtype)
    rounded = turned + (_rounded(turned.detach(), scheme) - turned.detach())
    return (rounded if matrix is None else rounded @ matrix.T.to(x.dtype), *args[1:])


def _rounded(x: Tensor, scheme: ActivationScheme) -> Tensor:
    """Rounded values; static scales, which are calibrated later, are those of the tensor at hand."""
    if scheme.strategy == "tensor_group":
        return fake_quantize(x, scheme, 448 * scheme.top / x.abs().max().clamp_min(1e-12).view(1))
    return fake_quantize(x, scheme if scheme.dynamic else replace(scheme, dynamic=True))
