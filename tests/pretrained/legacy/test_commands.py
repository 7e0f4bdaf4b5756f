"""Old configs through AllenNLP's own commands."""

import json

from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model_from_file
from allennlp.models.archival import load_archive

LIMIT = '{"iterator": {"base_iterator": {"maximum_samples_per_batch": ["num_tokens", 50] }}}'
ON_CPU = '{"trainer": {"cuda_device": -1}}'


def test_train_and_evaluate(tmp_path, old_configs, vocabulary):
    """A language model, and a tagger on top of it, both as 0.x wrote them."""
    sentences = ["the rain falls", "grey hills and rain", "over the hills", "rain"] * 5
    text, tagged, lm = tmp_path / "text.txt", tmp_path / "tagged.txt", tmp_path / "lm"
    text.write_text("\n".join(sentences), encoding="utf-8")
    tags = (" ".join(f"{word}###{word[0]}" for word in s.split()) for s in sentences)
    tagged.write_text("\n".join(tags), encoding="utf-8")
    config, tagger = old_configs["0.8"], old_configs["tagger"]
    config["train_data_path"] = str(tmp_path / "text*")
    config["vocabulary"]["directory_path"] = str(tmp_path / "words")
    (tmp_path / "lm.jsonnet").write_text(json.dumps(config))
    train_model_from_file(tmp_path / "lm.jsonnet", lm, overrides=ON_CPU)
    archive = lm / "model.tar.gz"
    # Training goes on with the modern config, and archives that.
    written = load_archive(archive).config
    assert written["data_loader"]["type"] == "language_modeling"
    assert written["trainer"]["cuda_device"] == -1
    tagger["train_data_path"] = tagger["validation_data_path"] = str(tagged)
    tagger["model"]["text_field_embedder"]["elmo"]["archive_file"] = str(archive)
    (tmp_path / "tagger.jsonnet").write_text(json.dumps(tagger))
    train_model_from_file(tmp_path / "tagger.jsonnet", tmp_path / "tagger")
    archive = tmp_path / "tagger" / "model.tar.gz"
    assert "accuracy" in evaluate_from_archive(archive, str(tagged), cmd_overrides=LIMIT)
