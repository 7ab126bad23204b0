"""Hadamard matrices of any order that Paley's and Sylvester's constructions give, and the largest block that fits a width."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

Element = tuple[int, ...]
"""An element of a finite field: the coefficients of a polynomial over the integers modulo a prime."""


def largest_block(width: int) -> int:
    """The largest divisor of ``width`` for which there is a Hadamard matrix here; at least 1."""
    return next(size for size in range(width, 0, -1) if width % size == 0 and has_hadamard(size))


def has_hadamard(order: int) -> bool:
    """Whether :func:`factors_of` gives a Hadamard matrix of this order."""
    return _base_of(order) is not None


def factors_of(order: int) -> tuple[Tensor, ...]:
    """Hadamard matrices whose Kronecker product is one of ``order``; fp32 of ±1, the first row and column all ones.

    An order is a power of two (Sylvester), or that times an order of :func:`paley`: 12, 20, 24, 28, 36, 44, 52, 60, 76, ….

    Raises:
        ValueError: there is none of this order here.
    """
    base = _base_of(order)
    if base is None:
        raise ValueError(f"there is no Hadamard matrix of order {order} here")
    power = (order // base).bit_length() - 1
    sizes = [min(_SYLVESTER, power - done) for done in range(0, power, _SYLVESTER)]
    return ((paley(base),) if base > 1 else ()) + tuple(sylvester(size) for size in sizes)


def sylvester(power: int) -> Tensor:
    """Sylvester's Hadamard matrix of order ``2^power``, fp32 of ±1."""
    matrix = torch.ones(1, 1)
    for _ in range(power):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix


def hadamard(order: int) -> Tensor:
    """A Hadamard matrix ``[order, order]`` of ±1, fp32, ``H Hᵀ = order · I``; the first row and column are all ones."""
    matrix = torch.ones(1, 1)
    for factor in factors_of(order):
        matrix = torch.kron(matrix, factor)
    return matrix


@lru_cache(maxsize=32)
def paley(order: int) -> Tensor:
    """Paley's Hadamard matrix of ``order = q + 1`` (q = 3 modulo 4) or ``2(q + 1)`` (q = 1 modulo 4), q a prime power.

    R. E. A. C. Paley, On orthogonal matrices (1933), lemmas 2 and 3.
    """
    if _prime_power(order - 1) and order % 4 == 0:
        matrix = _first_kind(order - 1)
    else:
        matrix = _second_kind(order // 2 - 1)
    matrix = matrix * matrix[:1]
    return matrix * matrix[:, :1]


def _first_kind(q: int) -> Tensor:
    """``I + S`` with the skew matrix S of the quadratic characters of differences."""
    skew = torch.zeros(q + 1, q + 1)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = _characters(q)
    return torch.eye(q + 1) + skew


def _second_kind(q: int) -> Tensor:
    """The symmetric conference matrix of order q + 1 with its zeros and ±1 replaced by matrices of order two."""
    conference = torch.zeros(q + 1, q + 1)
    conference[0, 1:], conference[1:, 0] = 1, 1
    conference[1:, 1:] = _characters(q)
    one = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    zero = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    return torch.kron(conference, one) + torch.kron(torch.eye(q + 1), zero)


def _characters(q: int) -> Tensor:
    """``χ(a − b)`` for all elements of the field of order q: 1 for squares, −1 for others, 0 for zero."""
    prime, power = _prime_power(q) or (q, 1)
    if power == 1:
        table = -torch.ones(q)
        table[torch.arange(1, q).square() % q], table[0] = 1, 0
        return table[(torch.arange(q).unsqueeze(1) - torch.arange(q)) % q]
    elements = list(product(range(prime), repeat=power))
    modulus = _irreducible(prime, power)
    squares = {_times(a, a, prime, modulus) for a in elements if any(a)}
    result = torch.zeros(q, q)
    for row, a in enumerate(elements):
        for column, b in enumerate(elements):
            difference = tuple((x - y) % prime for x, y in zip(a, b, strict=True))
            if any(difference):
                result[row, column] = 1 if difference in squares else -1
    return result


def _times(a: Element, b: Element, prime: int, modulus: Element) -> Element:
    """The product of two elements; ``modulus`` are the low coefficients of the monic irreducible polynomial."""
    size = len(a)
    long = [0] * (2 * size - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            long[i + j] = (long[i + j] + x * y) % prime
    for place in range(2 * size - 2, size - 1, -1):
        top, long[place] = long[place], 0
        for j, coefficient in enumerate(modulus):
            long[place - size + j] = (long[place - size + j] - top * coefficient) % prime
    return tuple(long[:size])


@lru_cache(maxsize=32)
def _irreducible(prime: int, power: int) -> Element:
    """The low coefficients of a monic polynomial without zeros and factors, so that the field has no divisors of zero."""
    elements = list(product(range(prime), repeat=power))
    if power == 1:
        return (0,)
    for modulus in elements:
        if modulus[0] and not _has_zero_divisors(prime, modulus, elements):
            return modulus
    raise ValueError(f"no irreducible polynomial of degree {power} modulo {prime}")


def _has_zero_divisors(prime: int, modulus: Element, elements: list[Element]) -> bool:
    """Whether some element's powers reach zero or 1 too early: the units of a field are a cyclic group."""
    one = (1, *(0,) * (len(modulus) - 1))
    for element in elements:
        if not any(element) or element[1:] == one[1:]:
            continue
        if any(not any(_times(element, other, prime, modulus)) for other in elements if any(other)):
            return True
    return False


def _prime_power(q: int) -> tuple[int, int] | None:
    """``(p, k)`` with ``q = p^k`` and p an odd prime; None where there are none."""
    if q < 3:
        return None
    prime = next((p for p in range(2, int(q**0.5) + 1) if q % p == 0), q)
    power, rest = 0, q
    while rest % prime == 0:
        rest //= prime
        power += 1
    return (prime, power) if rest == 1 and prime > 2 else None


_SYLVESTER = 6
"""The largest power of two of a factor: products with matrices of order 64 are quick."""
_LARGEST_BASE = 512
"""Orders of Paley's beyond this are not looked for: their matrices have no fast product."""


def _base_of(order: int) -> int | None:
    """The order of the Paley matrix that a matrix of ``order`` is a Kronecker product with; 1 for a power of two."""
    if order < 1:
        return None
    odd = order // (order & -order)
    if odd == 1:
        return 1
    base = 4 * odd
    while order % base == 0 and base <= _LARGEST_BASE:
        if _prime_power(base - 1) or (
            base % 4 == 0 and (base // 2 - 1) % 4 == 1 and _prime_power(base // 2 - 1)
        ):
            return base
        base *= 2
    return None
