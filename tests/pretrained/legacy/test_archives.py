"""Archives in the layouts of 0.7 to 0.9 opened here, and their numbers beside allennlp-models'."""

import json
import math
import tarfile

import pytest
import torch
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.common import Params
from allennlp.data import Token
from allennlp.models import Model
from allennlp.models.archival import load_archive

from tests.peer_lm import peer_model
from tests.small_lm import tensors
from transformer_elmo.commands.cli import main
from transformer_elmo.pretrained.legacy import modernize

SENTENCES = [
    "the rain falls over grey hills",
    "rain",
    "Größe und 日本語 and Ελλάδα falls",
    "a-word-" + "of-more-than-fifty-bytes-" * 4 + " falls over the hills",
    "and the and the and the and the rain",
]
DIALECTS = ["0.7", "0.8", "0.9"]


@pytest.fixture
def old_archive(old_configs, vocabulary, write_archive):
    """For a dialect: the peer's model, and an archive of its weights."""

    def make(dialect):
        torch.manual_seed(13)
        section = modernize(old_configs[dialect])[0]["model"]
        known = {k: v for k, v in section.items() if k not in ("bidirectional", "initializer")}
        model = peer_model(vocabulary, {**known, "type": "bidirectional_language_model"})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "gamma" not in name and "norm" not in name:
                    parameter.normal_(std=0.3)
        weights = model.state_dict()
        return model, write_archive(dialect, old_configs[dialect], weights, vocabulary)

    return make


@torch.no_grad()
def outputs(archive, sentences, model=None):
    """Of the archive's model or of another one."""
    reader = archive.config.as_dict(quiet=True)["dataset_reader"]
    batch = tensors(sentences, archive.model.vocab, reader)
    return (model or archive.model).eval()(**batch)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_numbers_are_the_peers(old_archive, tmp_path, dialect, capsys):
    """Of the archive, of what it is converted to, and under the override that was documented."""
    model, old = old_archive(dialect)
    new = old.with_name("new.tar.gz")
    assert main(["convert", str(old), str(new)]) == 0
    printed = capsys.readouterr().out
    assert "DROPPED " in printed and f"wrote {new}" in printed
    text = tmp_path / "heldout.txt"
    text.write_text("\n".join(SENTENCES), encoding="utf-8")
    line = '{"iterator": {"base_iterator": {"maximum_samples_per_batch": ["num_tokens", 40] }}}'
    archives = [load_archive(old), load_archive(new)]
    assert archives[0].config.params == archives[1].config.params
    for path, archive in zip((old, new), archives):
        assert type(archive.model).__module__.startswith("transformer_elmo")
        found, expected = outputs(archive, SENTENCES), outputs(archive, SENTENCES, model)
        assert torch.equal(found["mask"], expected["mask"])
        for key in ("lm_embeddings", "noncontextual_token_embeddings"):
            difference = (found[key] - expected[key])[found["mask"]]
            assert difference.abs().max() < 1e-5
        total = words = 0
        # One sentence at a time: in a batch, the peer has padding predict words as well.
        for sentence in SENTENCES:
            found, expected = outputs(archive, [sentence]), outputs(archive, [sentence], model)
            for key in ("loss", "forward_loss", "backward_loss"):
                torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-5)
            count = expected["mask"].sum().item() - 1
            total, words = total + expected["loss"].item() * count, words + count
        assert load_archive(path, overrides=line).config["data_loader"]["max_tokens"] == 40
        metrics = evaluate_from_archive(str(path), str(text), cmd_overrides=line)
        assert metrics["loss"] == pytest.approx(total / words, rel=1e-6)
        assert metrics["perplexity"] == pytest.approx(math.exp(total / words), rel=1e-6)


def test_files_that_went_into_the_archive(old_archive, old_configs, write_archive, vocabulary):
    """A tagger of 0.9 whose archive has its language model within."""
    _, lm = old_archive("0.8")
    config = old_configs["tagger"]
    config["vocabulary"] = {"tokens_to_add": {"labels": ["X", "Y"]}}
    vocabulary.add_tokens_to_namespace(["X", "Y"], "labels")
    modern = modernize(config)[0]["model"]
    modern["text_field_embedder"]["token_embedders"]["elmo"]["archive_file"] = str(lm)
    tagger = Model.from_params(Params(modern), vocab=vocabulary)
    key = "model.text_field_embedder.elmo.archive_file"
    old = write_archive("tagger", config, tagger.state_dict(), vocabulary, {key: str(lm)})
    lm.rename(lm.with_name("gone.tar.gz"))

    new = old.with_name("converted.tar.gz")
    assert main(["convert", str(old), str(new)]) == 0
    with tarfile.open(new) as tar:
        names = json.load(tar.extractfile("files_to_archive.json"))  # type: ignore[arg-type]
    assert list(names) == ["model.text_field_embedder.token_embedders.elmo.archive_file"]
    tokens = [[Token(word) for word in sentence.split()] for sentence in SENTENCES]
    for path in (old, new):
        archive = load_archive(path)
        found, expected = outputs(archive, tokens), outputs(archive, tokens, tagger)
        torch.testing.assert_close(found["logits"], expected["logits"])


# allennlp-models without this package.
THEIRS = """
import json, sys, torch
sys.modules["transformer_elmo"] = None
import allennlp_models.lm
from allennlp.data.batch import Batch
from allennlp.models.archival import load_archive
losses = {}
for path in sys.argv[2:]:
    archive = load_archive(path)
    batch = Batch([archive.dataset_reader.text_to_instance(s) for s in json.loads(sys.argv[1])])
    batch.index_instances(archive.model.vocab)
    with torch.no_grad():
        losses[path] = archive.model.eval()(**batch.as_tensor_dict())["loss"].item()
print(json.dumps(losses))
"""


@pytest.mark.slow
def test_a_converted_archive_opens_in_allennlp_models_alone(old_archive, tmp_path, run_python):
    expected = {}
    for dialect in DIALECTS:
        model, path = old_archive(dialect)
        new = tmp_path / f"new-{dialect}.tar.gz"
        assert main(["convert", str(path), str(new)]) == 0
        expected[str(new)] = outputs(load_archive(path), SENTENCES, model)["loss"].item()
    printed = run_python(THEIRS, json.dumps(SENTENCES), *expected)
    assert json.loads(printed.splitlines()[-1]) == pytest.approx(expected, rel=1e-6)


def test_a_config(old_configs, tmp_path, capsys):
    old, new, again = (tmp_path / name for name in ("old.jsonnet", "new.json", "again.json"))
    old.write_text(json.dumps(old_configs["0.8"]))
    assert main(["convert", str(old), str(new)]) == 0
    modern = json.loads(new.read_text())
    assert modern == modernize(old_configs["0.8"])[0]
    # A second time there is nothing to do.
    assert main(["convert", str(new), str(again)]) == 0
    assert "nothing of AllenNLP 0.x" in capsys.readouterr().out
    assert json.loads(again.read_text()) == modern


def test_errors_leave_nothing_behind(old_configs, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("NOT_SET_AT_ALL", raising=False)
    (tmp_path / "old.jsonnet").write_text("{ a: std.extVar('NOT_SET_AT_ALL') }")
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "there.json").write_text("{}")
    (tmp_path / "bad.json").write_text(json.dumps({**old_configs["0.8"], "nonsense": 1}))
    before = sorted(tmp_path.iterdir())
    for old, new, message in (
        ("old.jsonnet", "new.json", "export NOT_SET_AT_ALL"),
        ("cut.tar.gz", "new.tar.gz", "not a complete"),
        ("there.json", "there.json", "the old file itself"),
        ("bad.json", "there.json", "--force"),
        ("bad.json", "new.json", "nonsense"),
        ("bad.json", "new.tar.gz", "an archive becomes an archive"),
        ("bad.json", "nowhere/new.json", "There is no folder"),
        ("missing.json", "new.json", "is not a file"),
    ):
        assert main(["convert", str(tmp_path / old), str(tmp_path / new)]) == 1
        assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
