"""A tiny model's training run, for tests of what happens to runs."""

import logging
import multiprocessing
import os
import signal
import sys
import threading

import torch
import tqdm
from allennlp.common import Params
from allennlp.common.util import prepare_environment
from allennlp.data import Vocabulary
from allennlp.data.token_indexers import SingleIdTokenIndexer
from allennlp.data.tokenizers import WhitespaceTokenizer
from allennlp.models import Model
from allennlp.training.callbacks import TrainerCallback
from allennlp.training.learning_rate_schedulers import NoamLR

from transformer_elmo import LanguageModelingDataLoader, SimpleLanguageModelingDatasetReader
from transformer_elmo.plugin.training.checkpointer import CrashSafeCheckpointer
from transformer_elmo.plugin.training.resuming import ResumeDataCallback
from transformer_elmo.plugin.training.stopping import stopper
from transformer_elmo.plugin.training.trainer import LanguageModelTrainer


class TinyModel(Model):
    """Remembers its training batches, and depends on each and on dropout."""

    def __init__(self, vocab):
        super().__init__(vocab)
        self.embedding = torch.nn.Embedding(vocab.get_vocab_size(), 4)
        self.output = torch.nn.Linear(4, 1)
        self.seen = []

    def forward(self, source):
        tokens = source["tokens"]["tokens"]
        if self.training:
            self.seen.append(tokens.flatten().tolist())
        vectors = torch.nn.functional.dropout(self.embedding(tokens), 0.5, self.training)
        return {"loss": self.output(vectors.mean((0, 1))).pow(2).sum() + vectors.mean()}


class Signal(TrainerCallback):
    """Sends its process a signal: after so many steps, or at an epoch, a batch, and in training."""

    def __init__(self, serialization_dir, number=signal.SIGKILL, at=None):
        super().__init__(serialization_dir)
        self.number, self.at = number, at

    def on_batch(self, trainer, *args, is_training=True, **kwargs):
        steps, place = trainer._total_batches_completed, (*args[3:5], is_training)
        if self.at == place or (is_training and self.at == steps):
            os.kill(os.getpid(), self.number)


def make_trainer(
    corpus,
    directory,
    accumulate=1,
    metric="-loss",
    callback=ResumeDataCallback,
    model=TinyModel,
    num_epochs=3,
    others=(),
    **options,
):
    prepare_environment(Params({}))
    reader = SimpleLanguageModelingDatasetReader(
        WhitespaceTokenizer(), {"tokens": SingleIdTokenIndexer()}, end_tokens=["</S>"]
    )
    vocab = Vocabulary(counter={"tokens": {f"w{i}": 1 for i in range(50)}})
    loaders = [
        LanguageModelingDataLoader(reader, corpus, max_tokens=40, max_instances_in_memory=20)
        for _ in range(2)
    ]
    for loader in loaders:
        loader.index_with(vocab)
    model = model(vocab)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    directory.mkdir(exist_ok=True)
    callbacks = [callback(str(directory))] if callback else []
    return LanguageModelTrainer(
        model,
        optimizer,
        loaders[0],
        validation_data_loader=loaders[1],
        validation_metric=metric,
        num_epochs=num_epochs,
        serialization_dir=str(directory),
        checkpointer=CrashSafeCheckpointer(
            str(directory), save_every_num_batches=4, keep_most_recent_by_count=20
        ),
        learning_rate_scheduler=NoamLR(optimizer, model_size=4, warmup_steps=10),
        cuda_device=torch.device("cpu"),
        callbacks=[*callbacks, *others],
        num_gradient_accumulation_steps=accumulate,
        enable_default_callbacks=False,
        run_confidence_checks=False,
        **options,
    )


def train(corpus, directory, number, at, options):
    logging.basicConfig(filename=directory.parent / "log", level="INFO", force=True)
    sys.argv = ["allennlp", "train", "my config.json", "-s", str(directory), "--force"]
    # A run that goes on must not depend on the state that its process begins with.
    seed = 7 if any(directory.glob("model_state*")) else 1
    with stopper.listening():
        trainer = make_trainer(
            corpus, directory, others=[Signal(str(directory), number, at)], **options
        )
        torch.manual_seed(seed)
        metrics = trainer.train()
    result = {
        "seen": trainer.model.seen,
        "weights": trainer.model.state_dict(),
        "steps": trainer._total_batches_completed,
        "validation": metrics["validation_loss"],
    }
    torch.save(result, directory / "result")


def run(corpus, directory, number=signal.SIGKILL, at=None, **options):
    return forked(train, corpus, directory, number, at, options)


def forked(target, *arguments):
    """The exit code of a process of its own, which may be killed at any moment."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_with_a_lock_of_its_own, args=(target, *arguments))
    process.start()
    process.join(120)
    return process.exitcode


def _with_a_lock_of_its_own(target, *arguments):
    # Progress bars of all forks share one lock, which a killed one would never give back.
    tqdm.tqdm.set_lock(threading.RLock())
    target(*arguments)


def write_corpus(folder):
    folder.mkdir()
    for shard in range(3):
        lines = [
            " ".join(f"w{(7 * i + j * j + shard) % 60}" for j in range(1 + i % 9))
            for i in range(33)
        ]
        (folder / str(shard)).write_text("\n".join(lines))
    return folder


def weights_are_the_same(first, second):
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
