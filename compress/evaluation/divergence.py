"""Negative log-likelihood, KL divergence and top-1 agreement of every position of a window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24
"""Logits handled at once: bounds the fp32 temporaries to a few times 64 MB for any vocabulary."""


CONFIDENCE_BINS = 10


@dataclass(frozen=True)
class TokenFigures:
    """Figures of every position of a batch of windows, fp32 on the CPU.

    Attributes:
        nll: `[windows, length - 1]`, nats: minus the log-probability of each next token.
        kl: `[windows, length]`, nats: KL(reference ‖ model); None without a reference.
        agrees: `[windows, length]`, bool: both have the same most likely token; None without a reference.
        shift: `[windows, length - 1]`: the probability of each next token less the reference's; None without a reference.
        reference_nll: `[windows, length - 1]`, nats: the reference's `nll`; None without a reference.
        confidence: `[windows, length - 1]`: the probability of the most likely token.
        right: `[windows, length - 1]`, bool: the most likely token comes next.
    """

    nll: Tensor
    kl: Tensor | None
    agrees: Tensor | None
    shift: Tensor | None
    reference_nll: Tensor | None
    confidence: Tensor
    right: Tensor


def token_figures(tokens: Tensor, logits: Tensor, reference: Tensor | None = None) -> TokenFigures:
    """Compare a model's logits with the text and with the reference's logits.

    Args:
        tokens: `[windows, length]`, int64.
        logits: `[windows, length, vocabulary]`, any floating dtype, on any device.
        reference: the dense model's logits, same shape; moved to the device of `logits` chunk by chunk.

    Everything is computed in fp32, over `CHUNK_ELEMENTS` logits at a time.
    """
    windows, length, vocabulary = logits.shape
    step = max(1, CHUNK_ELEMENTS // vocabulary)
    flat = logits.reshape(-1, vocabulary)
    flat_reference = None if reference is None else reference.reshape(-1, vocabulary)
    # The last position predicts a token that is not there: it gets any target and is cut off below.
    targets = torch.roll(tokens, -1, dims=1).reshape(-1).to(logits.device)
    nll, kl, agrees, shift, before, confidence, right = [], [], [], [], [], [], []
    for start in range(0, flat.shape[0], step):
        rows = slice(start, start + step)
        log_q = flat[rows].float().log_softmax(-1)
        said = log_q.gather(-1, targets[rows, None]).squeeze(-1)
        best = log_q.max(-1)
        nll.append(-said.cpu())
        confidence.append(best.values.exp().cpu())
        right.append((best.indices == targets[rows]).cpu())
        if flat_reference is not None:
            log_p = flat_reference[rows].to(logits.device).float().log_softmax(-1)
            agrees.append((log_p.argmax(-1) == best.indices).cpu())
            said_before = log_p.gather(-1, targets[rows, None]).squeeze(-1)
            shift.append((said.exp() - said_before.exp()).cpu())
            before.append(-said_before.cpu())
            kl.append(_kl(log_p, log_q).cpu())

    def whole(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts).reshape(windows, length)

    return TokenFigures(
        nll=whole(nll)[:, :-1],
        kl=whole(kl) if kl else None,
        agrees=whole(agrees) if agrees else None,
        shift=whole(shift)[:, :-1] if shift else None,
        reference_nll=whole(before)[:, :-1] if before else None,
        confidence=whole(confidence)[:, :-1],
        right=whole(right)[:, :-1],
    )


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ_v p (log p − log q), `[tokens, vocabulary]` twice → `[tokens]`. A token that the reference forbids
    (log p = −∞, as masked padding rows of a vocabulary are) contributes nothing."""
    terms = log_p.exp() * (log_p - log_q)
    return terms.masked_fill_(log_p == -math.inf, 0.0).sum(-1)


@dataclass
class Tally:
    """Sums the figures of the windows seen so far, in fp64."""

    nll_sum: float = 0.0
    predicted: int = 0
    window_nll: list[float] = field(default_factory=list)
    window_change: list[float] = field(default_factory=list)
    window_kl: list[float] = field(default_factory=list)
    window_agreeing: list[float] = field(default_factory=list)
    agreeing: int = 0
    positions: int = 0
    token_kl: list[Tensor] = field(default_factory=list)
    squared_shift: float = 0.0
    by_confidence: Tensor = field(
        default_factory=lambda: torch.zeros(3, CONFIDENCE_BINS, dtype=torch.float64)
    )
    """Tokens, sum of confidences and tokens that were right, by bins of the confidence."""

    def add(self, figures: TokenFigures) -> None:
        """Add a batch of windows."""
        self.nll_sum += figures.nll.double().sum().item()
        self.predicted += figures.nll.numel()
        self.window_nll.extend(figures.nll.double().mean(1).tolist())
        if figures.reference_nll is not None:
            self.window_change.extend((figures.nll - figures.reference_nll).double().mean(1).tolist())
        self._add_confidence(figures.confidence.flatten().double(), figures.right.flatten().double())
        if figures.shift is not None:
            self.squared_shift += figures.shift.double().square().sum().item()
        if figures.kl is not None and figures.agrees is not None:
            self.window_kl.extend(figures.kl.double().mean(1).tolist())
            self.window_agreeing.extend(figures.agrees.double().mean(1).tolist())
            self.token_kl.append(figures.kl.flatten())
            self.agreeing += int(figures.agrees.sum())
            self.positions += figures.agrees.numel()

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood; infinite where a logit was not a number."""
        mean = self.nll_sum / self.predicted
        # exp overflows a double at 709.8 nats.
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def kl(self) -> float | None:
        """Mean KL divergence per token in nats."""
        return sum(self.window_kl) / len(self.window_kl) if self.window_kl else None

    @property
    def kl_error(self) -> float | None:
        """Standard error of `kl`, taking windows as independent."""
        return standard_error(self.window_kl)

    @property
    def top1_error(self) -> float | None:
        """Standard error of `top1`, taking windows as independent."""
        return standard_error(self.window_agreeing)

    @property
    def perplexity_error(self) -> float | None:
        """Standard error of `perplexity`: that of the mean negative log-likelihood over the windows, times the perplexity."""
        return _scaled(standard_error(self.window_nll), self.perplexity)

    @property
    def ratio(self) -> float | None:
        """The perplexity ÷ the reference's; None without a reference or where one of them is not finite."""
        if not self.window_change:
            return None
        mean = sum(self.window_change) / len(self.window_change)
        return math.exp(mean) if math.isfinite(mean) and mean < 700 else None

    @property
    def ratio_error(self) -> float | None:
        """Standard error of `ratio`, from the same windows of both models."""
        return None if self.ratio is None else _scaled(standard_error(self.window_change), self.ratio)

    def _add_confidence(self, confidence: Tensor, right: Tensor) -> None:
        if not bool(torch.isfinite(confidence).all()):
            self.by_confidence.fill_(math.nan)  # logits that are not numbers say nothing
            return
        bins = (confidence * CONFIDENCE_BINS).long().clamp_max(CONFIDENCE_BINS - 1)
        for row, values in zip(self.by_confidence, (torch.ones_like(right), confidence, right), strict=True):
            row.index_add_(0, bins, values)

    def kl_quantile(self, share: float) -> float | None:
        """The KL divergence that ``share`` of the tokens stay below, in nats."""
        if not self.token_kl:
            return None
        ordered = torch.cat(self.token_kl).sort().values
        return float(ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)])

    @property
    def rms_shift(self) -> float | None:
        """Root mean square of the change in the next token's probability, 0 to 1."""
        return math.sqrt(self.squared_shift / self.predicted) if self.window_kl else None

    @property
    def calibration_error(self) -> float | None:
        """Expected calibration error (Guo et al., 2017, eq. 3): confidence against how often it is right, 0 to 1."""
        count, said, right = self.by_confidence
        total = float(count.sum())
        return float((said - right).abs().sum() / total) if total > 0 else None

    @property
    def top1(self) -> float | None:
        """Share of positions whose most likely token is the reference's."""
        return self.agreeing / self.positions if self.positions else None


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean of independent values; None below two and where one is no number."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return float(torch.tensor(values, dtype=torch.float64).std()) / math.sqrt(len(values))


def _scaled(error: float | None, by: float) -> float | None:
    return None if error is None or not math.isfinite(by) else error * by
