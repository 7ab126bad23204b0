"""The example for Ray, without Ray: what a worker does, in two plain processes, and what the trainer is given."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

import compress

PATH = Path(__file__).resolve().parents[2] / "examples" / "cluster" / "ray_train.py"


def _example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ray_train", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _worker(rank: int, port: int, config: dict[str, Any], ends: Any) -> None:
    """A worker as Ray leaves it: its place in the environment, and a process group of Ray's."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo")
    try:
        _example().work(config)
        ends.put("")
    except RuntimeError as error:
        ends.put(str(error))


def _work(command: list[str]) -> list[str]:
    """What two workers end with."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ends = context.Queue()
    config = {"command": command, "cpus": 1}
    workers = [context.Process(target=_worker, args=(rank, port, config, ends)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = [ends.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join(60)
    return sorted(found)


def test_workers_run_the_command_together(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model, out = tiny_model("llama"), tmp_path / "out"
    alone = compress.compress(
        model, "w4-gptq", tmp_path / "alone", samples=2, length=32, settings={"quantize.group_size": 32}
    )
    options = ["--samples", "2", "--length", "32", "--set", "quantize.group_size=32", "--device", "cpu"]
    command = ["run", str(model), "-r", "w4-gptq", "-o", str(out), "--quiet", "--no-fresh-process", *options]
    assert _work(command) == ["", ""]
    assert [path.read_bytes() for path in out.glob("*.safetensors")] == [
        path.read_bytes() for path in alone.out.glob("*.safetensors")
    ]


def test_a_command_that_fails_fails_its_workers(tmp_path: Path) -> None:
    ends = _work(["run", str(tmp_path / "nothing"), "-r", "w4-gptq", "-o", str(tmp_path / "out"), "--quiet"])
    # The first says so; it has told the other one that nothing is left to do.
    assert ends == ["", "rank 0 ended with status 2"]


def test_what_the_trainer_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    class TorchTrainer:
        def __init__(self, *args: Any, **options: Any) -> None:
            given.append((args, options))

        def fit(self) -> None:
            given.append(((), {}))

    config = SimpleNamespace
    ray, train, torch = ModuleType("ray"), ModuleType("ray.train"), ModuleType("ray.train.torch")
    train.__dict__.update(FailureConfig=config, RunConfig=config, ScalingConfig=config)
    torch.__dict__.update(TorchConfig=config, TorchTrainer=TorchTrainer)
    for module in (ray, train, torch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    example = _example()
    example.main(["--workers", "3", "--cpus", "2", "--gpu", "--", "run", "M", "-o", "OUT"])
    (args, options), end = given
    assert end == ((), {})
    assert args == (example.work,)
    assert options["train_loop_config"] == {"command": ["run", "M", "-o", "OUT"], "cpus": 2}
    assert options["torch_config"].backend == "gloo"
    scaling = options["scaling_config"]
    assert (scaling.num_workers, scaling.use_gpu) == (3, True)
    assert scaling.resources_per_worker == {"CPU": 2, "GPU": 1}
    assert options["run_config"].failure_config.max_failures == 3
