"""Weighted SVD: the best rank-r weight in a two-sided metric, the computation behind every low-rank method.

``min tr(L Δ R Δᵀ)`` over ``Δ = W − B A`` is the truncated SVD of ``S_Lᵀ W S_R`` with ``L = S_L S_Lᵀ`` and ``R = S_R S_Rᵀ``,
mapped back by the inverse roots. The methods differ in the metric alone:

==========  =======================  ===========================  =====================================
method      L                        R                            paper
==========  =======================  ===========================  =====================================
SVD         identity                 identity
FWSVD       row sums of E[g²]        identity                     arXiv:2207.00112, eq. 6
ASVD        identity                 diagonal, (mean |x|)^2α      arXiv:2312.05821, eq. 5
SVD-LLM     identity                 E[x xᵀ]                      arXiv:2403.07378, eq. 4
GFWSVD      Fisher's left factor     Fisher's right factor        arXiv:2505.17974, eq. 8
EoRA        identity                 E[x xᵀ], of an error         arXiv:2410.21271, eq. 4
==========  =======================  ===========================  =====================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.score.metric import Elementwise, Kron, Metric, Side

FLOOR = 1e-8
"""Eigenvalues of a side are raised to this share of its largest: below it fp32 sums are noise, and the inverse must exist."""


@dataclass(frozen=True)
class Truncation:
    """The components of a weight ``[out, in]`` in a metric, fp64, by falling loss; n = min(out, in).

    ``left[:, :r] @ right[:r]`` is the best weight of rank r.

    Attributes:
        left: ``[out, n]``; each column is as long as the row of ``right`` that goes with it.
        right: ``[n, in]``.
        values: singular values ``[n]``: truncation at r loses ``Σ_{i≥r} values²`` in the metric.
        lifted: number of eigenvalues of the shorter side that were raised to :data:`FLOOR`.
    """

    left: Tensor
    right: Tensor
    values: Tensor
    lifted: int = 0

    def lost(self, rank: int) -> float:
        """The loss of truncation at ``rank``, relative to that of losing the whole weight: 0 to 1."""
        energy = self.values.square()
        whole = float(energy.sum())
        return float(energy[rank:].sum()) / whole if whole > 0 else 0.0


def decompose(weight: Tensor, metric: Metric) -> Truncation:
    """Decompose ``weight`` ``[out, in]`` in ``metric``.

    With ``P`` the leading eigenvectors of ``S_Lᵀ W R Wᵀ S_L`` the best weight is ``S_L⁻ᵀ P Pᵀ S_Lᵀ W``: only the root of the
    shorter side is formed and inverted, so that a weight with fewer outputs than inputs takes a singular Gram matrix as it is.
    """
    kron = as_kron(metric)
    if weight.shape[0] > weight.shape[1]:
        transposed = decompose(weight.T, Kron(kron.right, kron.left))
        return Truncation(transposed.right.T, transposed.left.T, transposed.values, transposed.lifted)
    full = weight.double()
    root, inverse = side_root(kron.left, weight.shape[0], weight.device)
    rooted = _times(root.T if root.ndim == 2 else root, full)
    moved = double(kron.right).right_apply(rooted)
    energy, vectors = torch.linalg.eigh(_symmetric(moved @ rooted.T))
    energy, vectors = energy.flip(0).clamp_min(0), vectors.flip(1)
    left = _times(inverse.T if inverse.ndim == 2 else inverse, vectors)
    right = vectors.T @ rooted
    balance = (right.norm(dim=1) / left.norm(dim=0).clamp_min(1e-300)).sqrt()
    scale = root.square() if root.ndim == 1 else root.square().sum(0)
    lifted = int((scale <= 1.001 * FLOOR * scale.max()).sum())
    return Truncation(left * balance, right / balance.clamp_min(1e-300).unsqueeze(1), energy.sqrt(), lifted)


def common_inputs(weights: Sequence[Tensor], metrics: Sequence[Metric]) -> tuple[Tensor, Tensor]:
    """The best right factor that several weights ``[out_i, in]`` share, fp64 ``[in, in]``, and its singular values ``[in]``.

    It is the right factor of the weights stacked, with the sides L_i on a block diagonal and the right side that all have in
    common: the leading eigenvectors of ``S_Rᵀ (Σ W_iᵀ L_i W_i) S_R``, mapped back. Its first r rows are the factor of rank r.
    """
    first = as_kron(metrics[0])
    root, inverse = side_root(first.right, weights[0].shape[1], weights[0].device)
    whole = torch.zeros(len(root), len(root), dtype=torch.float64, device=root.device)
    for weight, metric in zip(weights, metrics, strict=True):
        full = weight.double()
        whole += full.T @ double(as_kron(metric).left).right_apply(full.T).T
    moved = _times(root.T if root.ndim == 2 else root, whole)
    energy, vectors = torch.linalg.eigh(_symmetric(_times(root.T if root.ndim == 2 else root, moved.T)))
    right = _times(inverse.T if inverse.ndim == 2 else inverse, vectors.flip(1)).T
    return right / right.norm(dim=1, keepdim=True).clamp_min(1e-300), energy.flip(0).clamp_min(0).sqrt()


def refit_right(weight: Tensor, left: Tensor, metric: Metric) -> Tensor:
    """The ``A [r, in]`` that makes ``B A`` nearest to ``weight`` for a given ``B = left`` ``[out, r]``.

    ``(Bᵀ L B) A = Bᵀ L W``, whatever the right side is (SVD-LLM's closed-form update, arXiv:2403.07378, section 3.3).
    """
    moved = double(as_kron(metric).left).right_apply(left.double().T)
    return solve_symmetric(moved @ left.double(), moved @ weight.double())


def refit_left(weight: Tensor, right: Tensor, metric: Metric) -> Tensor:
    """The ``B [out, r]`` for a given ``A = right`` ``[r, in]``: ``B (A R Aᵀ) = W R Aᵀ``, whatever the left side is."""
    moved = double(as_kron(metric).right).right_apply(right.double())
    return solve_symmetric(moved @ right.double().T, moved @ weight.double().T).T


def as_kron(metric: Metric) -> Kron:
    """``metric`` as a two-sided metric.

    A side of zeros becomes the identity: without any inputs every element counts the same. An elementwise metric has no
    closed-form truncation and becomes the product of its row and column means.
    """
    if isinstance(metric, Kron):
        return Kron(_nonzero(metric.left), _nonzero(metric.right))
    assert isinstance(metric, Elementwise)
    rows, columns = metric.weight.mean(1), metric.weight.mean(0)
    return Kron(
        _nonzero(Side(rows)),
        _nonzero(Side(columns / columns.mean().clamp_min(torch.finfo(torch.float32).tiny))),
    )


def side_root(side: Side, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """``S`` with ``S Sᵀ`` the side, and its inverse: fp64 ``[size]`` for a diagonal, ``[size, size]`` for a matrix.

    Small eigenvalues are raised to a fixed share of the largest. A shift grown until a Cholesky factorisation succeeds would
    turn a singular Fisher matrix into the identity, which is plain SVD.
    """
    if side.matrix is None:
        ones = torch.ones(size, dtype=torch.float64, device=device)
        return ones, ones
    if side.matrix.ndim == 1:
        root = _lifted(side.matrix.double()).sqrt()
        return root, 1 / root
    energy, vectors = torch.linalg.eigh(_symmetric(side.matrix.double()))
    root = _lifted(energy).sqrt()
    return vectors * root, vectors.T / root.unsqueeze(1)


def _nonzero(side: Side) -> Side:
    return side if side.matrix is None or bool(side.matrix.any()) else Side()


def _lifted(energy: Tensor) -> Tensor:
    top = energy.max()
    return energy.clamp_min(FLOOR * float(top)) if float(top) > 0 else torch.ones_like(energy)


def _times(factor: Tensor, matrix: Tensor) -> Tensor:
    return factor.unsqueeze(1) * matrix if factor.ndim == 1 else factor @ matrix


def double(side: Side) -> Side:
    """The side in fp64."""
    return side if side.matrix is None else Side(side.matrix.double())


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def solve_symmetric(gram: Tensor, target: Tensor) -> Tensor:
    """``gram⁻¹ target`` for a symmetric ``gram``; directions in its null space are zero."""
    energy, vectors = torch.linalg.eigh(_symmetric(gram))
    keep = energy > 1e-12 * energy.max().clamp_min(1e-300)
    inverse = torch.where(keep, 1 / energy.clamp_min(1e-300), torch.zeros_like(energy))
    return vectors @ (inverse.unsqueeze(1) * (vectors.T @ target))
