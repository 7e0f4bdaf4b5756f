import multiprocessing
import os
import signal

import pytest
import torch
from allennlp.common import Params
from allennlp.common.checks import ConfigurationError
from allennlp.common.util import prepare_environment
from allennlp.data import Vocabulary
from allennlp.data.data_loaders import SimpleDataLoader
from allennlp.data.token_indexers import SingleIdTokenIndexer
from allennlp.data.tokenizers import WhitespaceTokenizer
from allennlp.models import Model
from allennlp.training import GradientDescentTrainer
from allennlp.training.callbacks import TrainerCallback
from allennlp.training.checkpointer import Checkpointer
from allennlp.training.learning_rate_schedulers import NoamLR

from transformer_elmo import LanguageModelingDataLoader, SimpleLanguageModelingDatasetReader
from transformer_elmo.plugin.resumption import CrashSafeCheckpointer, ResumeDataCallback


class TinyModel(Model):
    """
    Remembers its training batches, and depends on each and on dropout.
    """

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
    """
    Kills the process after a number of steps.
    """

    def __init__(self, serialization_dir, steps):
        super().__init__(serialization_dir)
        self.steps = steps

    def on_batch(self, trainer, *args, is_training=True, **kwargs):
        if is_training and trainer._total_batches_completed == self.steps:
            os.kill(os.getpid(), signal.SIGKILL)


def make_trainer(
    corpus, directory, kill_after=None, accumulate=1, metric="-loss", callback=ResumeDataCallback
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
    model = TinyModel(vocab)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    directory.mkdir(exist_ok=True)
    callbacks = [callback(str(directory))] if callback else []
    return GradientDescentTrainer(
        model,
        optimizer,
        loaders[0],
        validation_data_loader=loaders[1],
        validation_metric=metric,
        num_epochs=3,
        serialization_dir=str(directory),
        checkpointer=CrashSafeCheckpointer(
            str(directory), save_every_num_batches=4, keep_most_recent_by_count=20
        ),
        learning_rate_scheduler=NoamLR(optimizer, model_size=4, warmup_steps=10),
        cuda_device=torch.device("cpu"),
        callbacks=[*callbacks, Kill(str(directory), kill_after)],
        num_gradient_accumulation_steps=accumulate,
        enable_default_callbacks=False,
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
    process = multiprocessing.get_context("fork").Process(target=train, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus"
    path.mkdir()
    for shard in range(3):
        lines = [
            " ".join(f"w{(7 * i + j * j + shard) % 60}" for j in range(1 + i % 9))
            for i in range(33)
        ]
        (path / str(shard)).write_text("\n".join(lines))
    return path


# Steps before the first checkpoint, within epochs, and at their ends.
@pytest.mark.parametrize("accumulate, kills", [(1, [3, 10, 20, 47]), (3, [6, 12])])
def test_killed_again_and_again_it_ends_with_the_same_weights(corpus, tmp_path, accumulate, kills):
    assert run(corpus, tmp_path / "whole", None, accumulate) == 0
    whole = torch.load(tmp_path / "whole" / "result")
    for steps in kills:
        assert run(corpus, tmp_path / "killed", steps, accumulate) == -signal.SIGKILL
    assert run(corpus, tmp_path / "killed", None, accumulate) == 0
    killed = torch.load(tmp_path / "killed" / "result")

    assert killed["steps"] == whole["steps"]
    assert 0 < len(killed["seen"]) < len(whole["seen"])
    assert killed["seen"] == whole["seen"][-len(killed["seen"]) :]
    assert killed["validation"] == whole["validation"]
    for name, weight in whole["weights"].items():
        assert torch.equal(weight, killed["weights"][name]), name


@pytest.mark.parametrize("written", [True, False])
def test_killed_after_its_best_epoch_it_ends_with_the_best_weights(corpus, tmp_path, written):
    # The highest loss is that of the first epoch.
    assert run(corpus, tmp_path / "whole", None, 1, "+loss") == 0
    whole = torch.load(tmp_path / "whole" / "result")
    steps = whole["steps"] // 3 + 1
    assert run(corpus, tmp_path / "killed", steps, 1, "+loss") == -signal.SIGKILL
    best = tmp_path / "killed" / "best.th"
    if not written:
        # Killed between the checkpoint and this.
        best.unlink()
    assert run(corpus, tmp_path / "killed", None, 1, "+loss") == 0
    killed = torch.load(tmp_path / "killed" / "result")
    for weights in (killed["weights"], torch.load(best)):
        for name, weight in whole["weights"].items():
            assert torch.equal(weight, weights[name]), name


def test_a_checkpoint_that_was_being_written_is_removed(corpus, tmp_path):
    directory = tmp_path / "out"
    make_trainer(corpus, directory).train()
    checkpointer = CrashSafeCheckpointer(str(directory))
    newest = sorted(checkpointer._find_all_checkpoints())[-1]
    model_path = checkpointer._model_state_path(*newest)
    with open(model_path, "r+b") as file:
        file.truncate(os.path.getsize(model_path) // 2)
    with pytest.raises((RuntimeError, OSError)):
        Checkpointer(str(directory)).load_checkpoint()
    state = checkpointer.load_checkpoint()
    assert state is not None
    found = (
        state.trainer_state["epochs_completed"],
        state.trainer_state["batches_in_epoch_completed"],
    )
    assert found < newest
    assert not os.path.exists(model_path)


def test_without_it_the_batches_are_the_same(corpus, tmp_path):
    directory = tmp_path / "out"
    whole = make_trainer(corpus, directory, callback=None)
    whole.train()
    checkpointer = Checkpointer(str(directory), keep_most_recent_by_count=None)
    for checkpoint in checkpointer._find_all_checkpoints():
        if checkpoint > (1, 8):
            checkpointer._remove_checkpoint(*checkpoint)
    again = make_trainer(corpus, directory, callback=None)
    again.train()
    assert 0 < len(again.model.seen) < len(whole.model.seen)
    assert again.model.seen == whole.model.seen[-len(again.model.seen) :]
    assert again._total_batches_completed == whole._total_batches_completed


def test_needs_a_loader_that_can_be_told_where_to_go_on(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path / "out")
    trainer.data_loader = SimpleDataLoader([], 1)
    with pytest.raises(ConfigurationError, match="language_modeling"):
        trainer.train()
