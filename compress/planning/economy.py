"""A run within bounds of memory: what is given up for them, or the smallest bound that would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from compress.errors import UserError
from compress.models.skeleton import Skeleton
from compress.planning.memory import Economy
from compress.planning.methods import rotation_of
from compress.planning.peak import Doing, Held
from compress.recipe.recipe import Recipe
from compress.system.units import in_bytes

ALLOWANCE = 64 << 20
"""Bytes of the host beyond the tensors that are counted: pieces that the C library keeps."""
DEVICE_ALLOWANCE = 600 << 20
"""Bytes of an accelerator beyond them: its context, and the workspace of its products."""


@dataclass(frozen=True)
class MemoryBound:
    """A promise of memory.

    Attributes:
        total: bytes that the process may hold, Python and its libraries among them; mapped files are not counted. None for no
            bound.
        base: bytes that Python and its libraries take before the run.
        device: bytes that it may hold on an accelerator; None for no bound.
    """

    total: int | None
    base: int
    device: int | None = None

    def keeps(self, expected: Held) -> bool:
        """Whether a run that holds ``expected`` keeps to it."""
        host = self.total is None or expected.host <= self.total
        return host and (self.device is None or expected.device <= self.device)


@dataclass(frozen=True)
class Promised:
    """How a run keeps to a bound, and the bytes that it is expected to take with Python and its libraries."""

    bound: MemoryBound
    economy: Economy
    expected: int
    on_device: int = 0

    @property
    def note(self) -> str:
        """A sentence for people."""
        economy, ways = self.economy, list[str]()
        if economy.on_device is not None:
            ways.append("activations off the accelerator")
        if economy.in_memory == 0:
            ways.append("activations in a file")
        if economy.windows is not None:
            ways.append("one calibration window at a time")
        if economy.passes > 1:
            ways.append(f"statistics of a block in {economy.passes} passes")
        how = f": {', '.join(ways)}" if ways else ", without giving anything up for it"
        sizes = []
        if self.bound.total is not None:
            sizes.append(
                f"about {in_bytes(self.expected)} of the {in_bytes(self.bound.total)} of --memory, of which Python and its "
                f"libraries take {in_bytes(self.bound.base)}"
            )
        if self.bound.device is not None:
            sizes.append(
                f"about {in_bytes(self.on_device)} of the {in_bytes(self.bound.device)} of --device-memory"
            )
        return f"{' and '.join(sizes)}{how}"


def promise(bound: MemoryBound, doing: Doing, *, passes: bool) -> Promised:
    """The least economy with which a run keeps to a bound.

    Args:
        bound: what may be held.
        doing: the run.
        passes: whether a block's statistics may be gathered part by part.

    Raises:
        UserError: no economy does; the sentence says how much would.
    """

    def expected(economy: Economy) -> Held:
        held = doing.held(economy)
        device = held.device + DEVICE_ALLOWANCE if doing.device != "cpu" else 0
        return Held(bound.base + ALLOWANCE + held.host, device)

    ladder = [Economy()]
    if _economises(doing.recipe):
        ladder = _ladder(doing.skeleton, doing.needs, passes=passes, device=doing.device)
    sizes = [(economy, expected(economy)) for economy in ladder]
    for economy, size in sizes:
        if bound.keeps(size):
            return Promised(bound, economy, size.host, size.device)
    held = [size for _, size in sizes]
    data = any(doing.needs.values())
    least = min(size.host for size in held)
    if bound.total is not None and least > bound.total:
        libraries = f", of which Python and its libraries take {in_bytes(bound.base)}"
        raise UserError(_refusal("--memory", bound.total, least, libraries, data))
    # The device's bound decides, among what the host's leaves.
    fitting = [size for size in held if replace(bound, device=None).keeps(size)]
    assert bound.device is not None
    raise UserError(_refusal("--device-memory", bound.device, min(size.device for size in fitting), "", data))


def _refusal(option: str, given: int, least: int, libraries: str, data: bool) -> str:
    return (
        f"{option} {in_bytes(given)} is too little for this run: it takes {in_bytes(_rounded_up(least + least // 50))}"
        f"{libraries}; give at least that much" + (", or fewer or shorter samples" if data else "")
    )


def _economises(recipe: Recipe) -> bool:
    """Whether only the walk over the blocks holds activations: what prunes shapes or learns rotations walks for itself."""
    return recipe.depth_pruning is None and recipe.width_pruning is None and rotation_of(recipe) is None


def _ladder(
    skeleton: Skeleton, needs: Mapping[str, frozenset[str]], *, passes: bool, device: str
) -> list[Economy]:
    """Economies in the order of what they cost: off the accelerator, a file, small batches, more and more passes."""
    if not any(needs.values()):
        return [Economy()]
    accelerated = device != "cpu"
    small = Economy(in_memory=0, windows=1, on_device=0 if accelerated else None)
    counts = [0] * (len(skeleton.blocks) + 1)
    for view in skeleton.views:
        if needs.get(view.name) and view.block is not None:
            counts[view.block] += 1
    most = max(counts) if passes else 1
    steps = {2**power for power in range(1, most.bit_length())} | {most}
    return [
        Economy(),
        *([Economy(on_device=0)] if accelerated else ()),
        replace(small, windows=None),
        small,
        *(replace(small, passes=count) for count in sorted(steps) if count > 1),
    ]


def _rounded_up(size: int) -> int:
    """The next size that reads as it is: three digits of it, and no less."""
    step = 10 ** max(0, len(str(size)) - 3)
    return -(-size // step) * step
