import json

import pytest
import torch
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model

from tests.plugin.tiny_run import TinyModel, make_trainer, write_corpus
from tests.small_lm import model_config, random_sentences, tensors
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.training.bad_steps import sentences_of


class SpoiledModel(TinyModel):
    """Gives a NaN, an infinite loss or an infinite gradient at some of its steps."""

    def __init__(self, vocab):
        super().__init__(vocab)
        self.bad, self.how, self.weights = set(), "nan", []

    def forward(self, source):
        output = super().forward(source)
        if self.training:
            self.weights.append(self.output.weight.detach().clone())
        if self.training and len(self.seen) in self.bad:
            if self.how == "gradient":
                weight = self.output.weight * 1.0
                weight.register_hook(lambda gradient: gradient * float("inf"))
                output["loss"] = output["loss"] + weight.sum()
            else:
                output["loss"] = output["loss"] * float(self.how)
        return output


@pytest.fixture
def make(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")

    def trainer(bad, how="nan", **options):
        made = make_trainer(corpus, tmp_path / "out", model=SpoiledModel, num_epochs=1, **options)
        made.model.bad, made.model.how = set(bad), how
        return made

    return trainer


@pytest.mark.parametrize(
    "how, accumulate, options",
    [
        ("nan", 1, {}),
        ("inf", 2, {}),
        ("gradient", 2, {}),
        ("gradient", 1, {"grad_clipping": 1.0}),
        ("gradient", 1, {"grad_norm": 1.0}),
        ("gradient", 1, {"grad_norm": True}),
    ],
)
def test_the_step_is_skipped_and_its_sentences_are_written(
    make, tmp_path, how, accumulate, options, caplog
):
    trainer = make([4], how, accumulate=accumulate, **options)
    metrics = trainer.train()
    model = trainer.model
    assert torch.equal(model.weights[4], model.weights[3])
    assert not torch.equal(model.weights[4], model.weights[4 + accumulate])
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert metrics["training_loss"] == metrics["training_loss"]
    line = json.loads((tmp_path / "out" / "bad_steps.jsonl").read_text())
    assert line["what"] == ("gradient" if how == "gradient" else "loss")
    words = model.vocab.get_index_to_token_vocabulary()
    # All batches of the step, unless it is known which one it was.
    batches = model.seen[4 - accumulate if how == "gradient" else 3 : 4]
    expected = [words[number] for batch in batches for number in batch if number]
    assert " ".join(line["sentences"]).split() == expected
    assert len([r for r in caplog.records if "was skipped" in r.message]) == 1


def test_too_many_in_a_row(make, tmp_path):
    # Some among others don't end it.
    trainer = make([1, 2, 4, *range(6, 50)], max_bad_steps=3)
    with pytest.raises(ConfigurationError, match=r"3 steps in a row .*trainer\.max_bad_steps"):
        trainer.train()
    assert len(trainer.model.seen) == 8
    (tmp_path / "out" / "bad_steps.jsonl").unlink()
    again = make([])
    again.train()
    # It goes on after them, with the weights before them.
    assert again._start_after_batches_in_epoch_completed == 8
    assert len(again.model.seen) == 12
    # Nothing is written of steps that are fine.
    assert not (tmp_path / "out" / "bad_steps.jsonl").exists()


def test_outside_of_training_a_nan_is_a_nan(make):
    """As the search for a learning rate asks for it."""
    trainer = make([1])
    output = trainer.batch_outputs(next(iter(trainer.data_loader)), for_training=True)
    assert output["loss"].isnan()
    assert not trainer.bad_steps._batches


def test_perplexities_are_of_the_other_batches(vocabulary):
    torch.manual_seed(0)
    model = Model.from_params(Params(model_config()), vocab=vocabulary).train()
    model(**tensors(random_sentences(5), vocabulary))
    before = model.get_metrics()
    with torch.no_grad():
        model._softmax_loss.word_weights()[0].fill_(torch.nan)
    model(**tensors(random_sentences(5), vocabulary))
    assert model.get_metrics() == before
    # Of an evaluation, a NaN is the result.
    model.eval()(**tensors(random_sentences(5), vocabulary))
    assert model.get_metrics()["perplexity"] != before["perplexity"]


def test_sentences_from_characters_and_from_ids(vocabulary):
    sentences = ["the cat sat", "東京 naïve unknownword", "a"]
    batch = tensors(sentences, vocabulary)
    assert sentences_of(batch, vocabulary) == sentences
    del batch["source"]["token_characters"]
    batch = {"source": {"tokens": batch["source"]["tokens"]}}
    assert sentences_of(batch, vocabulary)[0] == "<S> the cat sat </S>"
    assert sentences_of({"x": torch.ones(2)}, Vocabulary()) == []
