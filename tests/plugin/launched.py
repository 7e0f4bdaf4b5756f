"""
Processes as torchrun and srun start them, for tests: forked from one that has imported AllenNLP,
which takes seconds, with the environment that the launcher would give them.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, Dict, List

import torch
from allennlp.commands import train
from allennlp.models import Model
from torch import multiprocessing

import transformer_elmo  # noqa: F401
from tests.small_lm import WORDS, experiment_config, random_sentences

multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])


def write_config(folder: Path, **changes: Any) -> Path:
    """A small run of two epochs, 10 steps each on two processes."""
    vocabulary = folder / "vocabulary"
    vocabulary.mkdir()
    words = ["@@UNKNOWN@@", "<S>", "</S>", *WORDS]
    (vocabulary / "tokens.txt").write_text("\n".join(words) + "\n")
    (vocabulary / "non_padded_namespaces.txt").write_text("*labels\n*tags\n")
    (folder / "train.txt").write_text("\n".join(random_sentences(90)))
    (folder / "valid.txt").write_text("\n".join(random_sentences(10, seed=1)))
    config = experiment_config(
        train_data_path=str(folder / "train.txt"),
        validation_data_path=str(folder / "valid.txt"),
        vocabulary={"type": "from_files", "directory": str(vocabulary)},
        data_loader={"type": "language_modeling", "max_tokens": 60},
        trainer={
            "num_epochs": 2,
            "cuda_device": -1,
            "optimizer": {"type": "dense_sparse_adam", "lr": 0.01},
            "callbacks": [{"type": "resume_data"}],
            "run_confidence_checks": False,
        },
        **changes,
    )
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def of_torchrun(rank: int, world_size: int, port: int) -> Dict[str, str]:
    """One machine."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def start(environments: List[Dict[str, str]], *arguments: Any, **options: Any) -> List[Any]:
    context = multiprocessing.get_context("forkserver")
    processes = [
        context.Process(target=_run, args=(environment, arguments, options))
        for environment in environments
    ]
    for process in processes:
        process.start()
    return processes


def ended(processes: List[Any]) -> List[Any]:
    for process in processes:
        process.join(300)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def _run(environment: Dict[str, str], arguments: Any, options: Dict[str, Any]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    config, folder = map(str, arguments)
    sys.argv = ["allennlp", "train", config, "-s", folder]
    # So that what it says can be read.
    said = os.open(f"{folder}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(said, 2)
    os.dup2(said, 1)
    rank = environment.get("RANK", "0")
    _at_steps(int(rank), options.pop("at_step", {}))
    if not environment:
        _fork_workers()
    train.train_model_from_file(config, folder, **options)


def _at_steps(rank: int, at_step: Dict[int, Any]) -> None:
    """Calls what is to be done by a rank at a step: `{rank: (step, signal)}`."""
    stock, count = Model.__call__, 0

    def call(model: Model, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += model.training
        step, number = at_step.get(rank, (-1, 0))
        if model.training and count == step:
            os.kill(os.getpid(), number)
        return stock(model, *args, **kwargs)

    Model.__call__ = call  # type: ignore[method-assign]


def _fork_workers() -> None:
    stock = multiprocessing.start_processes

    def forked(function: Any, start_method: str, **options: Any) -> Any:
        return stock(function, start_method="fork", **options)

    multiprocessing.start_processes = forked  # type: ignore[assignment]
