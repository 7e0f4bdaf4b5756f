"""A tiny model's training run, for tests of what happens to runs."""

import multiprocessing
import os
import signal
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


class Kill(TrainerCallback):
    """Kills the process after a number of steps."""

    def __init__(self, serialization_dir, steps):
        super().__init__(serialization_dir)
        self.steps = steps

    def on_batch(self, trainer, *args, is_training=True, **kwargs):
        if is_training and trainer._total_batches_completed == self.steps:
            os.kill(os.getpid(), signal.SIGKILL)


def make_trainer(
    corpus,
    directory,
    kill_after=None,
    accumulate=1,
    metric="-loss",
    callback=ResumeDataCallback,
    model=TinyModel,
    num_epochs=3,
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
        callbacks=[*callbacks, Kill(str(directory), kill_after)],
        num_gradient_accumulation_steps=accumulate,
        enable_default_callbacks=False,
        run_confidence_checks=False,
        **options,
    )


def train(corpus, directory, kill_after, accumulate, metric="-loss"):
    trainer = make_trainer(corpus, directory, kill_after, accumulate, metric)
    # A run that goes on must not depend on the state that its process begins with.
    torch.manual_seed(kill_after or 0 if any(directory.glob("model_state*")) else 1)
    metrics = trainer.train()
    metrics.pop("training_duration")
    torch.save(
        {
            "seen": trainer.model.seen,
            "weights": trainer.model.state_dict(),
            "steps": trainer._total_batches_completed,
            "validation": metrics["validation_loss"],
        },
        directory / "result",
    )


def run(*arguments):
    return forked(train, *arguments)


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
