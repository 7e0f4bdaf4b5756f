"""Old configs through AllenNLP's own commands."""

import json

import pytest
from allennlp.commands.build_vocab import make_vocab_from_params
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.find_learning_rate import find_learning_rate_model
from allennlp.commands.train import train_model_from_file
from allennlp.common import Params
from allennlp.models.archival import load_archive
from allennlp.predictors import Predictor

LIMIT = '{"iterator": {"base_iterator": {"maximum_samples_per_batch": ["num_tokens", 50] }}}'
ON_CPU = '{"trainer": {"cuda_device": -1}}'


@pytest.fixture
def config_file(tmp_path, old_configs, vocabulary):
    """Writes the config of a dialect, and text for it to read."""
    sentences = ["the rain falls", "grey hills and rain", "over the hills", "rain"] * 5
    (tmp_path / "text").mkdir()
    for part in ("1", "2"):
        (tmp_path / "text" / part).write_text("\n".join(sentences), encoding="utf-8")
    tagged = "\n".join(" ".join(f"{w}###{w[0]}" for w in s.split()) for s in sentences)
    (tmp_path / "tagged.txt").write_text(tagged, encoding="utf-8")

    def write(dialect, **paths):
        config = old_configs[dialect]
        config.update({key: str(tmp_path / path) for key, path in paths.items()})
        if "directory_path" in config.get("vocabulary", {}):
            config["vocabulary"]["directory_path"] = str(tmp_path / "words")
        if dialect == "tagger":
            embedders = config["model"]["text_field_embedder"]
            embedders["elmo"]["archive_file"] = str(tmp_path / "0.8" / "model.tar.gz")
        path = tmp_path / f"{dialect}.jsonnet"
        path.write_text(json.dumps(config), encoding="utf-8")
        return path

    return write


def test_train_evaluate_predict(tmp_path, config_file):
    """A language model, and a tagger on top of it, both as 0.x wrote them."""
    path = config_file("0.8", train_data_path="text/*")
    train_model_from_file(path, tmp_path / "0.8", overrides=ON_CPU)
    archive = tmp_path / "0.8" / "model.tar.gz"
    written = load_archive(archive).config
    # Training goes on with the modern config, and archives that.
    assert written["data_loader"]["type"] == "language_modeling"
    assert written["trainer"]["cuda_device"] == -1
    text = str(tmp_path / "text" / "1")
    losses = [
        evaluate_from_archive(archive, text, cmd_overrides=overrides)["loss"]
        for overrides in ("", LIMIT, '{"data_loader.max_tokens": 20}')
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)

    path = config_file("tagger", train_data_path="tagged.txt", validation_data_path="tagged.txt")
    train_model_from_file(path, tmp_path / "tagger")
    archive = load_archive(tmp_path / "tagger" / "model.tar.gz")
    tagged = str(tmp_path / "tagged.txt")
    metrics = evaluate_from_archive(
        tmp_path / "tagger" / "model.tar.gz", tagged, cmd_overrides=LIMIT
    )
    assert 0 <= metrics["accuracy"] <= 1
    predictor = Predictor(archive.model, archive.dataset_reader)
    instance = next(iter(archive.dataset_reader.read(tagged)))
    assert len(predictor.predict_instance(instance)["tags"]) == 3


def test_vocabulary_and_learning_rate(tmp_path, config_file):
    path = config_file("0.7", train_data_path="text")
    make_vocab_from_params(Params.from_file(path), tmp_path)
    words = (tmp_path / "vocabulary" / "tokens.txt").read_text(encoding="utf-8").split()
    assert {"rain", "hills", "<S>", "</S>"} < set(words)
    find_learning_rate_model(Params.from_file(path), tmp_path / "rate", num_batches=11)
    assert (tmp_path / "rate" / "lr-losses.png").exists()
