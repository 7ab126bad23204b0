"""A command of several processes on a Ray cluster: each worker of a ``TorchTrainer`` is one of them.

    python examples/cluster/ray_train.py --workers 4 --cpus 4 -- run /data/my-model -r w4-gptq -o /data/my-model-w4 --quiet

The first worker reads the model and writes the output: paths are those of its node (of `heal`: of every node). Every worker
starts the command in a process of its own, in which there is no process group of Ray's. Restarted after a failure, the same
command goes on from the last finished block.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from typing import Any

import torch.distributed as dist


def common_port() -> int:
    """A port that was free on the node of the first worker, the same on all; Ray's own is taken."""
    port: list[Any] = [None]
    if dist.get_rank() == 0:
        with socket.create_server(("", 0)) as free:
            port = [free.getsockname()[1]]
    dist.broadcast_object_list(port, src=0)
    return int(port[0])


def work(config: dict[str, Any]) -> None:
    """What each worker does: run the command as the rank that Ray has given it (``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``).

    Args:
        config: ``command``, the words after ``compress``, and ``cpus``, threads of each process.

    Raises:
        RuntimeError: the command ended with another status than 0; its own sentence is in the worker's log.
    """
    changes = {"MASTER_PORT": str(common_port()), "OMP_NUM_THREADS": str(config["cpus"])}
    done = subprocess.run(
        [sys.executable, "-m", "compress_cli", *config["command"]], env={**os.environ, **changes}, check=False
    )
    if done.returncode:
        raise RuntimeError(f"rank {dist.get_rank()} ended with status {done.returncode}")


def trainer(command: list[str], *, workers: int, cpus: int, gpu: bool, retries: int) -> Any:
    """The ``TorchTrainer`` of a command.

    Args:
        command: the words after ``compress``.
        workers: processes, at most as many as a block has weights.
        cpus: of each.
        gpu: whether each has a GPU to itself.
        retries: how often a failed command is started again.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415
    from ray.train.torch import TorchConfig, TorchTrainer  # noqa: PLC0415

    return TorchTrainer(
        work,
        train_loop_config={"command": command, "cpus": cpus},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpu else {})},
        ),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=retries)),
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command to its end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=4, help="of each worker")
    parser.add_argument("--gpu", action="store_true", help="each worker has a GPU")
    parser.add_argument("--retries", type=int, default=3)
    parser.add_argument("command", nargs="+", help="run … or heal …, after --")
    asked = parser.parse_args(arguments)
    trainer(asked.command, workers=asked.workers, cpus=asked.cpus, gpu=asked.gpu, retries=asked.retries).fit()


if __name__ == "__main__":
    main()
