"""
Where faults happen: commands, each in a process forked from this one, that can be killed, and a
disk that can be filled.
"""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from allennlp.commands import main as allennlp_main
from allennlp.models import Model

import transformer_elmo  # noqa: F401
from transformer_elmo.files import write_text

WORDS = "the a cat dog bird sat ran flew on under over mat house tree and then it was".split()
NUM_SENTENCES = 60
EPOCHS = 3
DIM = 8


class LostError(AssertionError):
    """A fault that a run didn't survive."""


class Bench:
    """
    Runs of one small config, each in a process forked from this one, which has everything imported.

    # Parameters

    space : `Path`
    seed : `int`
    """

    def __init__(self, space: Path, seed: int) -> None:
        self.space = space
        self.random = random.Random(seed)
        self.log = space / "log"
        generator = random.Random(0)
        for name, count in (("train.txt", NUM_SENTENCES), ("valid.txt", 12)):
            lines = [
                " ".join(generator.choices(WORDS, k=generator.randint(1, 9))) for _ in range(count)
            ]
            write_text(space / name, "\n".join(lines) + "\n")
        vocabulary = space / "vocabulary"
        vocabulary.mkdir()
        write_text(vocabulary / "tokens.txt", "\n".join(["@@UNKNOWN@@", *WORDS]) + "\n")
        write_text(vocabulary / "non_padded_namespaces.txt", "*labels\n*tags\n")
        self.config = space / "config.json"
        write_text(self.config, json.dumps(config(space)))
        begin = time.monotonic()
        self.whole = space / "whole"
        self.expect(self.train(self.whole), 0)
        self.seconds = time.monotonic() - begin
        self.weights = weights(self.whole)

    def start(
        self,
        folder: Path,
        *options: str,
        config_file: Optional[Path] = None,
        inside: Callable[[], Any] = lambda: None,
    ) -> int:
        """`allennlp train` in a process of its own; its number."""
        arguments = ["train", str(config_file or self.config), "-s", str(folder), *options]

        def train() -> None:
            sys.argv = ["allennlp", *arguments]
            inside()
            allennlp_main(prog="allennlp")

        return self.fork(train)

    def fork(self, action: Callable[[], Any]) -> int:
        """
        Does something in a process of its own, whose exit code is 0 or what it exits with.

        # Returns

        `int`
            The process's number.
        """
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            os.setsid()
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(output, stream)
            sys.stdout = os.fdopen(1, "w", buffering=1)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            logging.getLogger().handlers.clear()
            action()
            code = 0
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, process: int) -> int:
        """The exit code, or the signal's number below zero."""
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def train(self, folder: Path, *options: str, **further: Any) -> int:
        return self.wait(self.start(folder, *options, **further))

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def expect(self, code: int, *codes: int) -> None:
        if code not in codes:
            raise LostError(f"exit code {code}\n{self.said()[-3000:]}")

    def expect_said(self, text: str) -> None:
        if text not in self.said():
            raise LostError(f"not said: {text!r}\n{self.said()[-3000:]}")

    def expect_whole(self, folder: Path) -> None:
        """The folder has the weights of the run that nothing happened to, and no litter."""
        found = weights(folder)
        for name, tensor in self.weights.items():
            if not torch.equal(tensor, found[name]):
                raise LostError(f"other weights: {name}\n{self.said()[-3000:]}")
        left = [path.name for path in folder.iterdir() if path.name.endswith((".part", ".link"))]
        if left or not (folder / "model.tar.gz").exists():
            raise LostError(f"left in the folder: {left or sorted(os.listdir(folder))}")

    def recover(self, folder: Path) -> None:
        self.expect(self.train(folder, "--recover"), 0)
        self.expect_whole(folder)

    def stopped_run(self, folder: Path) -> None:
        """A run that was killed in the middle, with two checkpoints."""
        self.expect(self.train(folder, inside=lambda: kill_at_step(9)), -signal.SIGKILL)

    def newest(self, folder: Path, kind: str) -> Path:
        places = [
            tuple(int(part[1:]) for part in path.stem.split("_")[2:])
            for path in folder.glob("model_state_e*_b*.th")
        ]
        return folder / "{}_e{}_b{}.th".format(kind, *max(places))

    def moment(self, seconds: Optional[float] = None) -> float:
        """A random one of a run, or of what takes so many seconds."""
        return self.random.uniform(0.0, 1.1 * (seconds or self.seconds))


def config(space: Path) -> Dict[str, Any]:
    """A language model that is trained in seconds, with every part of the billion-word one."""
    return {
        "dataset_reader": {
            "type": "simple_language_modeling",
            "tokenizer": {"type": "just_spaces"},
            "token_indexers": {
                "tokens": {"type": "single_id"},
                "token_characters": {"type": "elmo_characters"},
            },
            "start_tokens": ["<S>"],
            "end_tokens": ["</S>"],
        },
        "train_data_path": str(space / "train.txt"),
        "validation_data_path": str(space / "valid.txt"),
        "vocabulary": {"type": "from_files", "directory": str(space / "vocabulary")},
        "data_loader": {"type": "language_modeling", "max_tokens": 80, "distinct_words": True},
        "model": {
            "type": "bidirectional_language_model",
            "num_samples": 4,
            "sparse_embeddings": True,
            "dropout": 0.1,
            "text_field_embedder": {
                "token_embedders": {
                    "tokens": {"type": "empty"},
                    "token_characters": {
                        "type": "character_encoding",
                        "embedding": {"num_embeddings": 262, "embedding_dim": 4},
                        "encoder": {
                            "type": "cnn-highway",
                            "embedding_dim": 4,
                            "filters": [[1, 4], [2, 4]],
                            "num_highway": 1,
                            "projection_dim": DIM,
                        },
                    },
                }
            },
            "contextualizer": {
                "type": "bidirectional_language_model_transformer",
                "input_dim": DIM,
                "hidden_dim": 16,
                "num_layers": 1,
                "dropout": 0.1,
                "input_dropout": 0.1,
            },
        },
        "trainer": {
            "num_epochs": EPOCHS,
            "optimizer": "dense_sparse_adam",
            "checkpointer": {"save_every_num_batches": 3},
            "callbacks": [{"type": "resume_data"}],
            "run_confidence_checks": False,
        },
    }


def weights(folder: Path) -> Dict[str, torch.Tensor]:
    return torch.load(folder / "best.th")


def kill_at_step(step: int) -> None:
    def kill(number: int) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    count_steps(kill)


def count_steps(action: Callable[[int], Any]) -> None:
    """Has `action` called with the number of each training step before it, from 1."""
    stock, number = Model.__call__, 0

    def call(model: Model, *args: Any, **kwargs: Any) -> Any:
        nonlocal number
        if model.training:
            number += 1
            action(number)
        return stock(model, *args, **kwargs)

    mock.patch.object(Model, "__call__", call).start()


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], None]]:
    folder.mkdir()

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    mount("size=64m")
    try:
        yield lambda room: mount(f"remount,size={room // 1024}k")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
