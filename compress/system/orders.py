"""Orders: what the first rank asks of the others, which carry it out and send back what it returns."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from compress.errors import UserError
from compress.system.device import device_of_rank
from compress.system.monitor import keep_little_free_memory
from compress.system.ranks import Ranks


@dataclass
class Place:
    """Where a rank works.

    Attributes:
        device: its own.
        held: what earlier orders have left here for later ones, by name.
    """

    device: torch.device
    held: dict[str, Any] = field(default_factory=dict)


class Order(Protocol):
    """Something to do, with all that it takes; its class can be imported on every rank."""

    def carry_out(self, place: Place) -> Any:
        """Do it; what is returned goes to the first rank.

        Raises:
            UserError: the first rank is told its sentence.
        """
        ...


@dataclass(frozen=True)
class Failed:
    """A sentence for people in the place of results."""

    sentence: str


def serve_orders(ranks: Ranks, device: str) -> None:
    """Carry out what the first rank orders until it says that all is done.

    Args:
        ranks: this process among the others.
        device: as the command names it; of several GPUs of a machine every rank takes its own.

    Raises:
        RanksApart: the first rank has ended.
        UserError: this machine has no such device.
    """
    keep_little_free_memory()
    place = Place(device_of_rank(device, ranks.here))
    while (order := ranks.receive(0)) is not None:
        ranks.send(0, _carried_out(order, place))
        del order


def answer(ranks: Ranks, rank: int) -> Any:
    """What an order has returned on another rank.

    Raises:
        RanksApart: that rank has ended.
        UserError: what went wrong there.
    """
    found = ranks.receive(rank)
    if isinstance(found, Failed):
        raise UserError(found.sentence)
    return found


def release(ranks: Ranks) -> None:
    """Tell the other ranks that nothing is left to do."""
    for rank in range(1, ranks.size):
        with suppress(UserError):
            ranks.send(rank, None)


def _carried_out(order: Order, place: Place) -> Any:
    try:
        return order.carry_out(place)
    except UserError as error:
        return Failed(str(error))
