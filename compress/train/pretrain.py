"""Training from scratch: a model of a configuration, dense, sparse or of layers that are small, on the tokens of a text."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from compress.calibrate.corpus import load_apart
from compress.calibrate.text_length import check_two_windows
from compress.checkpoint.output import check_output
from compress.errors import UserError
from compress.models.lost_linear import LOST
from compress.planning.methods import build
from compress.recipe.registry import LAYERS, find
from compress.recipe.section import Method as Entry
from compress.recipe.section import as_method
from compress.system.device import resolve_device
from compress.text.limits import check_token_ids, embedding_rows
from compress.text.tokenize import load_tokenizer
from compress.train.layers.base import Layers, Packed
from compress.train.sparse import SparseTraining, linear_layers
from compress.train.write import save

_LOG = logging.getLogger(__name__)

METHODS = (*LAYERS, "full", "sparse")


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained from scratch.

    Attributes:
        method: what the linear layers are (:data:`compress.recipe.registry.LAYERS`), ``full`` or ``sparse``.
        ratio: the share of a linear layer's parameters that ``lost``, ``low-rank`` and ``block-low-rank`` take.
        columns: the share of the inputs that LOST keeps whole. gamma: its γ.
        bits: of a weight of ``bits`` and ``shift``; 4 and 3 unless given.
        sparsity: the share of zeros in every linear layer of ``sparse``. masks: how they are found
            (:data:`compress.recipe.registry.MASKS`).
        from_weights: begin at the weights of the configuration's folder, not at random ones.
        tokens: to train on; windows are drawn anew for every batch.
        batch: windows in a step. length: tokens in a window.
        rate: the largest learning rate of AdamW; it rises over the first twentieth and falls linearly to a tenth.
        decay: weight decay of matrices. held_out: windows of the end of the text, never trained on.
        every: steps between two looks at these. seed: of the weights and the windows.
    """

    method: str = "lost"
    ratio: float = 0.6
    columns: float = 0.05
    gamma: float = 0.5
    bits: int | None = None
    sparsity: float = 0.7
    masks: Any = "soft-shrink"
    from_weights: bool = False
    tokens: int = 1_000_000
    batch: int = 8
    length: int = 256
    rate: float = 1e-3
    decay: float = 0.1
    held_out: int = 16
    every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ``UserError`` for a setting out of range."""
        if self.method not in METHODS:
            raise UserError(f"there is no method {self.method!r} to train by: take {', '.join(METHODS)}")
        for name, least in (("tokens", 1), ("batch", 1), ("length", 2), ("held_out", 1), ("every", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is at least {least}, not {getattr(self, name)}")
        if not 0 < self.ratio <= 1 or not 0 <= self.columns < 1 or not 0 < self.gamma <= 1 or self.rate <= 0:
            raise UserError(
                "ratio and gamma are above 0 and up to 1, columns from 0 to below 1, and the rate is above 0"
            )
        if not 0 < self.sparsity < 1:
            raise UserError(f"sparsity is a share of zeros above 0 and below 1, not {self.sparsity}")
        layers = self.layers
        if self.from_weights and layers is not None and not layers.any_start:
            raise UserError(f"'{self.method}' begins at random weights: leave out the weights to begin at")
        if self.bits is not None and not hasattr(layers, "bits"):
            raise UserError(f"'{self.method}' has no bits to set: leave them out, or take bits or shift")
        if self.method == "sparse":
            self.rule  # noqa: B018  refuses an unknown one

    @property
    def layers(self) -> Layers | None:
        """The entry of layers, made anew; None of ``full`` and ``sparse``.

        Raises:
            UserError: a setting that it does not take.
        """
        if self.method not in LAYERS:
            return None
        known = {one.name for one in fields(find("layers", self.method))}
        given = {"ratio": self.ratio, "columns": self.columns, "gamma": self.gamma, "bits": self.bits}
        options = {name: value for name, value in given.items() if name in known and value is not None}
        made: Layers = build("layers", Entry(name=self.method, options=options))
        return made

    @property
    def rule(self) -> Any:
        """The rule of masks.

        Raises:
            UserError: an unknown name or option.
        """
        method = as_method(self.masks)
        return build("masks", method if isinstance(method, Entry) else Entry.model_validate(method))

    @property
    def steps(self) -> int:
        """Updates."""
        return max(1, math.ceil(self.tokens / (self.batch * self.length)))


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        parameters: of the model, embeddings included. linear_parameters: of what stands for its linear layers. Both are
            numbers that are stored, of whatever bits.
        losses: ``(tokens seen, held-out loss in nats per token)``, the last one of the finished model.
        seconds: of training.
        zeros: sparse layer → the share of its weight that is 0.
    """

    settings: TrainSettings
    parameters: int
    linear_parameters: int
    losses: tuple[tuple[int, float], ...]
    seconds: float
    zeros: Mapping[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """The held-out loss at the end, nats per token."""
        return self.losses[-1][1]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def train(
    config: str | Path,
    out: str | Path,
    *,
    data: str,
    settings: TrainSettings | None = None,
    tokenizer: str | Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Trained:
    """Train a model from scratch and write it as a checkpoint.

    Args:
        config: a folder with a ``config.json``, such a file, or a hub name; its weights are not read.
        out: the folder to write. data: the text, as for calibration.
        tokenizer: the folder of the tokenizer; that of ``config`` unless given.
        overwrite: replace an existing checkpoint.
        progress: called after every step with its number and its loss.

    Raises:
        UserError: a configuration, a text or a setting that cannot be trained with, or a loss that is not finite.
    """
    wanted = settings or TrainSettings()
    folder, target = Path(config), Path(out).resolve()
    folder = folder.parent if folder.is_file() else folder
    check_output(target, folder, overwrite)
    words = load_tokenizer(tokenizer or (folder if folder.is_dir() else config))
    check_two_windows(data, words, length=wanted.length, bos=False)
    place = resolve_device(device)
    torch.manual_seed(wanted.seed)
    layers = wanted.layers
    model = _model(folder if folder.is_dir() else config, wanted)
    if layers is not None:
        layers.begin(model, list(linear_layers(model)))
    model = model.to(place)
    training, held_out = _windows(words, data, wanted)
    check_token_ids(held_out, embedding_rows(model), data)
    check_token_ids(training[None], embedding_rows(model), data)
    trained, packed = _run(model, layers, training, held_out, wanted, place, progress)
    save(model, packed, words, trained.to_json(), target)
    return trained


def _model(config: str | Path, settings: TrainSettings) -> PreTrainedModel:
    try:
        made = AutoConfig.from_pretrained(config)
        for key in ("quantization_config", LOST):
            if hasattr(made, key):
                delattr(made, key)
        made.dtype = torch.float32
        model: PreTrainedModel = (
            AutoModelForCausalLM.from_pretrained(config, dtype=torch.float32)
            if settings.from_weights
            else AutoModelForCausalLM.from_config(made)
        )
    except Exception as error:  # whatever transformers makes of a configuration
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{config}: no model can be made of this configuration ({reason[:200]})") from error
    return model


def _windows(tokenizer: PreTrainedTokenizerBase, data: str, settings: TrainSettings) -> tuple[Tensor, Tensor]:
    """The tokens to train on in one row, and the held-out windows ``[held_out, length]``."""

    def places(tokens: int, length: int, count: int, generator: torch.Generator) -> Tensor:
        return torch.arange(0, tokens - length + 1, length)

    training, held_out = load_apart(
        data,
        tokenizer,
        samples=1,
        held_out=settings.held_out,
        length=settings.length,
        seed=settings.seed,
        places=places,
        bos=False,
    )
    return training.tokens.flatten(), held_out.tokens


def _run(
    model: PreTrainedModel,
    layers: Layers | None,
    tokens: Tensor,
    held_out: Tensor,
    settings: TrainSettings,
    device: torch.device,
    progress: Callable[[int, float], None],
) -> tuple[Trained, dict[str, Packed]]:
    start = time.perf_counter()
    optimizer, schedule = _optimizer(model, settings)
    losses: list[tuple[int, float]] = []
    sparse = None
    if settings.method == "sparse":
        sparse = SparseTraining(model, settings.rule, settings.sparsity, settings.steps, settings.seed)
        optimizer, schedule = _optimizer(model, settings)
    model.train()
    for step, ids in enumerate(_batches(tokens, settings), start=1):
        loss = model(input_ids=ids.to(device), labels=ids.to(device)).loss
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} at step {step}: take a smaller --rate")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if sparse is not None and sparse.after_step(step, schedule.get_last_lr()[0]):
            optimizer, schedule = _optimizer(model, settings, step)
        if layers is not None:
            layers.after_step(step / settings.steps)
        schedule.step()
        progress(step, value)
        if step % settings.every == 0 or step == settings.steps:
            held = _held_out_loss(model, held_out, device)
            losses.append((step * settings.batch * settings.length, held))
            _LOG.info("step %d of %d: held-out loss %.4f", step, settings.steps, held)
    model.eval()
    packed = {} if layers is None else layers.finish(model)
    own = linear_layers(model).values()
    linear = sum(p.numel() for module in own for p in module.parameters(recurse=False))
    less = sum(one.shape[0] * one.shape[1] - one.numbers for one in packed.values())
    count = sum(p.numel() for p in model.parameters())
    zeros = {} if sparse is None else sparse.zeros
    seconds = time.perf_counter() - start
    return Trained(settings, count - less, linear - less, tuple(losses), seconds, zeros), packed


def _optimizer(model: nn.Module, settings: TrainSettings, begun: int = 0) -> tuple[Any, Any]:
    """AdamW and its schedule; ``begun`` steps are done already."""
    optimizer = torch.optim.AdamW(_groups(model, settings.decay), lr=settings.rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(begun + step, settings.steps))
    return optimizer, schedule


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def _rate(step: int, steps: int) -> float:
    """Linear to 1 over a twentieth of the steps, then linear to a tenth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 1 - 0.9 * (step - warm) / max(1, steps - warm)


def _batches(tokens: Tensor, settings: TrainSettings) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(settings.seed)
    windows = tokens.unfold(0, settings.length, 1)
    for _ in range(settings.steps):
        yield windows[torch.randint(len(windows), (settings.batch,), generator=generator)].clone()


@torch.no_grad()
def _held_out_loss(model: PreTrainedModel, windows: Tensor, device: torch.device) -> float:
    model.eval()
    losses = [
        float(model(input_ids=row[None].to(device), labels=row[None].to(device)).loss) for row in windows
    ]
    model.train()
    return sum(losses) / len(losses)
