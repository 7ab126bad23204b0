"""Block inputs: hidden states and further arguments of every block, recorded by running the model's own forward.

Recorders stand in the places of the blocks, so masks and rotary embeddings are those that the model itself makes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from compress_kernels.forward import quick_forward
from torch import Tensor, nn
from torch.func import functional_call

from compress.errors import UserError

PACKINGS: tuple[Callable[[Tensor], Any], ...] = (
    lambda hidden: hidden,
    lambda hidden: (hidden,),
    lambda hidden: (hidden, None),
    lambda hidden: (hidden, None, None),
)
"""The forms in which architectures expect a block to return its hidden states."""


_ADDED_TOLERANCE = 0.05
"""Relative difference between two findings of what a model adds between its blocks, which rounding in bf16 makes."""


class CannotStream(UserError):
    """A model whose blocks cannot be run one by one; it can only be run as a whole."""


class WrongDtype(UserError):
    """A model whose code does not run in the dtype that was chosen."""


class _Extra:
    """Stands for a further output of a block: a model that hands it to a later block is noticed."""


class _Mismatch(Exception):
    """The input of a block is not the output of the block before it."""


@dataclass
class Pool:
    """One copy of equal tensors: most blocks get the same mask and rotary embeddings in every batch."""

    kept: dict[tuple[Any, ...], list[Tensor]] = field(default_factory=dict)
    _seen: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def new_batch(self) -> None:
        """Forget the objects of the batch before: their ids may be used again."""
        self._seen.clear()

    def keep(self, value: Any) -> Any:
        """Return `value` with its tensors replaced by equal ones that are kept already, if any."""
        if isinstance(value, Tensor):
            return self._keep_tensor(value)
        if isinstance(value, dict):
            return {key: self.keep(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.keep(item) for item in value)
        return value

    def _keep_tensor(self, tensor: Tensor) -> Tensor:
        if id(tensor) in self._seen:
            return self._seen[id(tensor)][1]
        same_kind = self.kept.setdefault((tensor.shape, tensor.dtype, tensor.device), [])
        # The newest few are enough: what differs from batch to batch would make this search quadratic.
        kept = next((other for other in same_kind[:-9:-1] if torch.equal(other, tensor)), None)
        if kept is None:
            kept = _compact(tensor.detach())
            same_kind.append(kept)
        self._seen[id(tensor)] = (tensor, kept)
        return kept


def _compact(tensor: Tensor) -> Tensor:
    """A copy in which equal rows are stored once; it shares no memory with a larger tensor."""
    if tensor.dim() > 1 and tensor.shape[0] > 1 and torch.equal(tensor, tensor[:1].expand_as(tensor)):
        return tensor[:1].clone(memory_format=torch.contiguous_format).expand_as(tensor)
    return tensor.clone(memory_format=torch.contiguous_format)


@dataclass
class Captured:
    """The block inputs of one batch.

    Attributes:
        hidden: the hidden states that the first block is given, `[b, length, hidden]`.
        kwargs: by block, its further arguments by name.
        added: by block, what the model adds to the hidden states before it, `[b, length, hidden]`, such as features of
            images, or None.
    """

    hidden: Tensor
    kwargs: list[dict[str, Any]]
    added: list[Tensor | None]


class _Recorder(nn.Module):
    """Stands in for a block: records its arguments and returns its input."""

    def __init__(self, block: nn.Module, session: _Session) -> None:
        super().__init__()
        # Past nn.Module's bookkeeping, so that the block does not become a child.
        object.__setattr__(self, "_stand_in_for", block)
        self._session = session

    def __getattr__(self, name: str) -> Any:
        # Some models read attributes of a block, such as `attention_type`, before they call it.
        return getattr(object.__getattribute__(self, "_stand_in_for"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        names = list(inspect.signature(self._stand_in_for.forward).parameters)
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        hidden = arguments.pop(names[0])
        return self._session.record(hidden, arguments)


class _Session:
    """One run of the model around its recorders."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.packing = 0
        self.watched = False
        self.hidden: Tensor | None = None
        self.factor = 1.0  # by which the first block's stand-in changes the hidden states
        self.kwargs: list[dict[str, Any]] = []
        self.added: list[Tensor | None] = []
        self._last: Tensor | None = None
        self._version = 0

    def start(self, factor: float = 1.0) -> None:
        self.hidden = self._last = None
        self.factor = factor
        self.kwargs, self.added = [], []
        self._pool.new_batch()

    def record(self, hidden: Any, kwargs: dict[str, Any]) -> Any:
        added = None
        if self.hidden is None:
            self.hidden = hidden
            hidden = hidden * self.factor if self.factor != 1.0 else hidden
        elif not isinstance(hidden, Tensor) or hidden.shape != self.hidden.shape:
            raise _Mismatch
        elif hidden is self._last and hidden._version != self._version:
            raise CannotStream("this model changes the hidden states between its blocks")
        elif self._last is not None and hidden is not self._last and not torch.equal(hidden, self._last):
            added = hidden.float() - self._last.float()
        if any(isinstance(value, _Extra) for value in kwargs.values()):
            raise CannotStream(
                "a block of this model is given more of the block before it than hidden states"
            )
        self._last, self._version = hidden, hidden._version
        self.added.append(added)
        self.kwargs.append(self._pool.keep(kwargs))
        packed = PACKINGS[self.packing](hidden)
        if self.watched and isinstance(packed, tuple):
            return (packed[0], *(_Extra() for _ in packed[1:]))
        return packed


class Capture:
    """Runs a model's own forward with recorders for blocks; use as ``with capture_of(...) as capture``."""

    def __init__(self, base: nn.Module, blocks: int, session: _Session) -> None:
        self._base = base
        self._blocks = blocks
        self._session = session
        self._settled = False

    def run(self, tokens: Tensor, images: Mapping[str, Tensor] | None = None) -> Captured:
        """Record the block inputs for `tokens`, int64 `[b, length]` on the model's device.

        images: further arguments of the model, by name; those that it does not take are left out.

        Raises:
            UserError: the model does not call each of its blocks once, in order, on plain hidden states.
        """
        taken = inspect.signature(self._base.forward).parameters
        options: dict[str, Any] = {"use_cache": False} if "use_cache" in taken else {}
        options |= {name: value for name, value in (images or {}).items() if name in taken}
        failure: Exception | None = None
        forms = [(packing, watched) for packing in range(len(PACKINGS)) for watched in (True, False)]
        if self._settled:
            forms = [(self._session.packing, self._session.watched)]
        for self._session.packing, self._session.watched in forms:
            self._session.start()
            try:
                output = self._base(input_ids=tokens, **options)
            except (UserError, MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # a model that unpacks the wrong form fails in a way of its own
                failure = error
                continue
            hidden = self._session.hidden
            last = output[0] if not isinstance(output, Tensor) else output
            if (
                hidden is None
                or hidden.shape[:2] != tokens.shape
                or len(self._session.kwargs) != self._blocks
            ):
                break
            if last.shape[:2] == tokens.shape:
                self._settled = True
                captured = Captured(hidden, self._session.kwargs, self._session.added)
                if any(part is not None for part in captured.added):
                    self._check_added(tokens, options, captured.added)
                return captured
        raise CannotStream(
            f"{type(self._base).__name__} does not run its {self._blocks} blocks once each, in order, on "
            "hidden states of one sequence per row"
        ) from failure

    def _check_added(
        self, tokens: Tensor, options: Mapping[str, Any], added: Sequence[Tensor | None]
    ) -> None:
        """Whether what the model does between its blocks is a sum with something that the blocks have no part in: it then
        is the same behind a block that returns twice as much."""
        self._session.start(factor=2.0)
        self._base(input_ids=tokens, **options)
        again = self._session.added
        if len(again) != len(added):
            raise CannotStream("this model changes the hidden states between its blocks")
        for first, second in zip(added, again, strict=True):
            same = first is None and second is None
            if first is not None and second is not None:
                same = bool((first - second).norm() <= _ADDED_TOLERANCE * first.norm())
            if not same:
                raise CannotStream("this model changes the hidden states between its blocks")


@contextmanager
def capture_of(
    model: nn.Module, blocks: Sequence[str], pool: Pool, takes: str = "input_ids"
) -> Iterator[Capture]:
    """Recorders in the places of `blocks` (module names) while the context lasts.

    takes: the argument that the innermost module which is run has to take.
    """
    base = base_of(model, blocks[0], takes)
    session = _Session(pool)
    originals = {name: model.get_submodule(name) for name in blocks}
    try:
        for name, block in originals.items():
            _replace(model, name, _Recorder(block, session))
        yield Capture(base, len(blocks), session)
    finally:
        for name, block in originals.items():
            _replace(model, name, block)


def base_of(model: nn.Module, block: str, takes: str = "input_ids") -> nn.Module:
    """The innermost module around a block that takes token ids, and images where `takes` says so: the decoder without
    its head."""
    path = block.split(".")
    for depth in range(len(path) - 1, -1, -1):
        module = model.get_submodule(".".join(path[:depth]))
        if {"input_ids", takes} <= inspect.signature(module.forward).parameters.keys():
            return module
    raise UserError(f"Nothing around {block} takes token ids, so the model cannot be calibrated on text.")


def call_block(block: nn.Module, hidden: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """Run a block; its output `[b, length, hidden]`, also where it returns a tuple.

    Raises:
        WrongDtype: its code mixes dtypes in a way that torch refuses.
    """
    with runs_in(hidden.dtype, block), quick_forward():
        return first_tensor(block(hidden, **kwargs))


def call_block_with(
    block: nn.Module, parameters: Mapping[str, Tensor] | None, hidden: Tensor, kwargs: Mapping[str, Any]
) -> Tensor:
    """:func:`call_block` with ``parameters``, by name within the block, in the place of its own where they are given."""
    if parameters is None:
        return call_block(block, hidden, kwargs)
    with runs_in(hidden.dtype, block), quick_forward():
        return first_tensor(functional_call(block, dict(parameters), (hidden,), dict(kwargs)))


@contextmanager
def runs_in(dtype: torch.dtype, module: nn.Module) -> Iterator[None]:
    """Say what to do where a module's code fails on tensors of different dtypes while it computes in bf16 or fp16.

    Raises:
        WrongDtype: it does.
    """
    try:
        yield
    except RuntimeError as error:
        if dtype == torch.float32 or "dtype" not in str(error):
            raise
        chosen = "bf16" if dtype == torch.bfloat16 else "fp16"
        reason = next(iter(str(error).strip().splitlines()), "")
        raise WrongDtype(
            f"the code of {type(module).__name__} does not run in {chosen} ({reason[:200]}): give --dtype fp32"
        ) from error


def first_tensor(output: Any) -> Tensor:
    """A block's hidden states, which it returns alone or first of several."""
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = module
