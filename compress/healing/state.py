"""The state of a training on disk: all that decides what follows, so that a killed training goes on to the same bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from compress.checkpoint.output import disk_errors, sync
from compress.checkpoint.shard_files import bytes_of
from compress.checkpoint.shards import dtype_code


@dataclass(frozen=True)
class Point:
    """A measurement.

    Attributes:
        step: steps taken.
        tokens: tokens trained on.
        loss: mean training loss by token since the measurement before; None at the start.
        kl: held-out KL by token, in nats.
        gradient_norm: root mean square over the steps since then of the gradient's norm in units; None at the start.
    """

    step: int
    tokens: int
    loss: float | None
    kl: float
    gradient_norm: float | None = None


@dataclass
class State:
    """Where a training stands.

    Attributes:
        step: steps taken.
        masters: trained tensor → its values now.
        moments: trained tensor → the optimizer's state.
        best: masters with the least held-out KL.
        start: masters before the first step.
        points: measurements.
        running: sums since the last measurement: of losses, of squared gradient norms, steps.
        ended: why training is over; empty while it is not.
        rate: the largest learning rate.
    """

    step: int
    masters: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    best: dict[str, Tensor]
    start: dict[str, Tensor]
    points: list[Point] = field(default_factory=list)
    running: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    ended: str = ""
    rate: float = 0.0
    kept_kl: float = math.nan
    """The held-out KL of what is kept, once it is chosen."""

    @property
    def best_point(self) -> Point:
        """The measurement with the least held-out KL; the first of equal ones."""
        return min(self.points, key=lambda point: point.kl)

    def to(self, device: torch.device) -> State:
        """The same with its tensors on a device."""

        def moved(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device) for name, tensor in values.items()}

        return replace(
            self,
            masters=moved(self.masters),
            moments={name: moved(own) for name, own in self.moments.items()},
            best=moved(self.best),
            start=moved(self.start),
        )

    def save(self, path: Path, key: str) -> None:
        """Write the state of the training ``key`` in one step: a crash leaves the state before or this one.

        Raises:
            UserError: it cannot be written, as on a full disk.
        """
        groups = {"masters": self.masters, "best": self.best, "start": self.start}
        tensors = {f"{group}:{name}": t for group, values in groups.items() for name, t in values.items()}
        for name, moments in self.moments.items():
            tensors |= {f"moments:{suffix}:{name}": tensor for suffix, tensor in moments.items()}
        facts = {
            "key": key,
            "step": self.step,
            "points": [asdict(point) for point in self.points],
            "running": self.running,
            "ended": self.ended,
            "rate": self.rate,
        }
        beside = path.with_name(path.name + ".new")
        size = sum(tensor.nbytes for tensor in tensors.values())
        with disk_errors(path, size):
            write_tensors(beside, tensors, {"state": json.dumps(facts)})
            sync(beside)
            beside.rename(path)

    @classmethod
    def load(cls, path: Path, key: str, device: torch.device) -> State | None:
        """The state that :meth:`save` wrote; None if there is none of the training ``key``."""
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                facts = json.loads((file.metadata() or {})["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError):
            return None
        # A state of an earlier version has no rate: its training begins anew.
        return _of(facts, tensors) if facts.get("key") == key and "rate" in facts else None


def what_is_kept(path: Path) -> str:
    """What a stopped healing has kept, ahead of ``kept``: ``the healing at step 12 is``.

    Args:
        path: of its state, which may not be there.
    """
    try:
        with safe_open(path, framework="pt") as file:
            step = int(json.loads((file.metadata() or {})["state"])["step"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return "the beginning of the healing is"
    return f"the healing at step {step} is"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, written a tensor at a time: no copy of all of them is made in memory."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        places = [end, end + tensor.nbytes]
        header[name] = {
            "dtype": dtype_code(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": places,
        }
        end = places[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(bytes_of(tensor))


def _of(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> State:
    groups: dict[str, dict[str, Tensor]] = {"masters": {}, "best": {}, "start": {}}
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(":")
        if group == "moments":
            suffix, _, owner = rest.partition(":")
            moments.setdefault(owner, {})[suffix] = tensor
        else:
            groups[group][rest] = tensor
    return State(
        step=int(facts["step"]),
        masters=groups["masters"],
        moments=moments,
        best=groups["best"],
        start=groups["start"],
        points=[Point(**point) for point in facts["points"]],
        running=facts["running"],
        ended=str(facts["ended"]),
        rate=float(facts["rate"]),
    )
