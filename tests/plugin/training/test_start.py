"""What a language model's run is refused for, or warned of, before its first step."""

import copy

import pytest
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model
from allennlp.common import Params

from tests.small_lm import WORDS, experiment_config, random_sentences
from transformer_elmo.errors import ConfigurationError


@pytest.fixture
def trained(tmp_path):
    """Trains on a vocabulary of these lines, and gives the folder of the run."""

    def train(lines, **trainer):
        text = tmp_path / "train.txt"
        text.write_text("\n".join(random_sentences(20)))
        (tmp_path / "words").mkdir()
        (tmp_path / "words" / "tokens.txt").write_text("\n".join(["@@UNKNOWN@@", *lines]))
        (tmp_path / "words" / "non_padded_namespaces.txt").write_text("*labels\n*tags\n")
        config = copy.deepcopy(
            experiment_config(
                train_data_path=str(text),
                validation_data_path=str(text),
                vocabulary={"type": "from_files", "directory": str(tmp_path / "words")},
            )
        )
        config["trainer"].update(trainer)
        config["model"]["num_samples"] = None
        train_model(Params(config), str(tmp_path / "run"))
        return tmp_path / "run"

    return train


@pytest.mark.parametrize("entry", ["cat\t12", "cat "])
def test_an_entry_that_no_word_can_equal(trained, entry):
    with pytest.raises(ConfigurationError, match=r"entry 3, 'cat.*, is none that a word of the"):
        trained(["the", entry])


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_words_that_are_mostly_unknown(trained, share):
    """One line, at the start of training and of `allennlp evaluate`."""
    run = trained(["<S>", "</S>", *WORDS][: int(share * len(WORDS)) + 2], num_epochs=2)
    log = run / "out.log"
    assert log.read_text().count("are not in the vocabulary") == (share < 1)
    # The run's log is this process's, from then on.
    evaluate_from_archive(run, str(run.parent / "train.txt"))
    assert log.read_text().count("are not in the vocabulary") == 2 * (share < 1)
