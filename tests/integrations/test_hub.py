"""Models on the Hub, by huggingface_hub as it is, of a Hub on this machine."""

import copy
import json
import sys
from typing import Any

import numpy as np
import pytest
import torch

from tests.integrations.hub_server import TOKEN, running
from tests.integrations.small_model import save_small_model
from transformer_elmo import ConfigurationError, TransformerElmo
from transformer_elmo.pretrained.folder import CARD, CONFIG, VOCABULARY, WEIGHTS
from transformer_elmo.pretrained.hub import name_of

pytest.importorskip("huggingface_hub")
yaml = pytest.importorskip("yaml")

FOLDER = {CARD, CONFIG, VOCABULARY, WEIGHTS}

START = """
from transformer_elmo import ConfigurationError, TransformerElmo

def said(call, *args, **options):
    try:
        return repr(call(*args, **options))
    except ConfigurationError as error:
        return str(error)

def vector(name, **options):
    elmo = TransformerElmo.from_pretrained(name, **options)
    return [elmo.name, elmo.embed([["the", "cat"]])[0].tolist()]
"""


@pytest.fixture
def hub():
    with running() as hub:
        yield hub


@pytest.fixture
def run(hub, tmp_path, in_new_process):
    """From code to what it prints, in a process that knows this Hub and a cache of its own."""

    def run(code: str, **variables: Any) -> Any:
        variables = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "",
            "NO_PROXY": "*",
            **variables,
        }
        return json.loads(in_new_process(START + code, tmp_path, **variables))

    return run


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_goes_up_and_comes_down(hub, run, tmp_path):
    save_small_model(tmp_path / "folder")
    expected = TransformerElmo.open(tmp_path / "folder", "cpu").embed([["the", "cat"]])[0].tolist()
    hub.revisions["user/model"] = {"main": {"model.onnx": b"of another model", "notes.txt": b"x"}}
    address, message = run(
        f"""
elmo = TransformerElmo.open("folder")
card = {{"license": "apache-2.0", "language": "en", "tags": ["legal"], "corpus": "made up"}}
address = elmo.push_to_hub("user/model", token="{TOKEN}", card=card)
elmo.push_to_hub("user/other", token="{TOKEN}", private=True, with_softmax=False)
print(json.dumps([address, said(elmo.push_to_hub, "user/model")]))
"""
    )
    assert address == f"{hub.url}/user/model"
    assert message.startswith("user/model: ") and "log in" in message and "\n" not in message
    files = hub.revisions["user/model"]["main"]
    # A graph of what was there before isn't this model's.
    assert set(files) == {*FOLDER, "notes.txt"}
    card = files[CARD].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    tags = ["elmo", "word-embeddings", "language-model", "legal"]
    assert front == {
        "library_name": "transformer-elmo",
        "license": "apache-2.0",
        "language": "en",
        "tags": tags,
    }
    assert "| corpus | made up |" in card and "| license |" not in card
    hub.revisions["user/model"]["v2"] = {**files, "pytorch_model.bin": b"pickle", "a.py": b"x"}
    first, second, third, again = run(
        f"""
names = [vector("user/model"), vector("hf://user/model", revision="v2")]
names += [vector("user/other", token="{TOKEN}", softmax=False, device="cpu")]
names += [[TransformerElmo.open("hf://user/model@v2").name, None]]
print(json.dumps(names))
"""
    )
    names = [result[0] for result in (first, second, third, again)]
    assert names == [
        *("hf://user/model", "hf://user/model@v2", "hf://user/other", "hf://user/model@v2")
    ]
    assert first[1] == second[1] == third[1] == expected
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == FOLDER
    # From the cache alone.
    hub.asked.clear()
    missing = "{name}: it isn't in the cache, and HF_HUB_OFFLINE keeps it from the Hub."
    offline = run(
        """
from transformer_elmo.commands.cli import main
print(json.dumps([vector("user/model"), vector("user/model", revision="v2"),
    said(vector, "user/none"), main(["nearest", "hf://user/model", "cat"])]))
""",
        HF_HUB_OFFLINE="1",
    )
    assert offline == [first, second, missing.format(name="hf://user/none"), 0]
    assert not hub.asked


def test_what_cannot_be_had(hub, run, tmp_path):
    files = files_of(save_small_model(tmp_path / "folder"))
    hub.revisions.update(
        {
            "user/secret": {"main": files},
            "user/gated": {"main": files},
            "user/bert": {"main": {CONFIG: b'{"model_type": "bert"}', WEIGHTS: b"large"}},
            "user/empty": {"main": {"README.md": b"soon"}},
            "user/damaged": {"main": {**files, WEIGHTS: files[WEIGHTS][:500]}},
            "user/model": {"main": files},
        }
    )
    hub.private.append("user/secret")
    hub.gated.append("user/gated")
    expected = {
        "user/none": "hf://user/none: the Hub has no such repository, or it is a private one",
        "user/secret": "hf://user/secret: the Hub has no such repository, or it is a private one",
        "user/gated": "hf://user/gated: its owner gives access on request",
        "user/bert": "hf://user/bert holds no model folder of transformer-elmo",
        "user/empty": "hf://user/empty holds no model folder of transformer-elmo",
        "user/damaged": "hf://user/damaged/model.safetensors is not a file of weights",
        "user/a--b": "hf://user/a--b: the Hub has no such names",
        "hf://user/model@v9": "hf://user/model@v9: the repository has no such revision",
    }
    *found, token = run(
        f"""
results = [said(TransformerElmo.from_pretrained, name) for name in {list(expected)!r}]
results += [said(TransformerElmo.from_pretrained, "user/secret", token="{TOKEN}")]
print(json.dumps(results))
"""
    )
    for message, start in zip(found, expected.values()):
        assert message.startswith(start) and "\n" not in message
    assert token.startswith("TransformerElmo(model: hf://user/secret, ")
    assert not any("bert" in path and WEIGHTS in path for path in hub.asked)
    (unreachable,) = run(
        'print(json.dumps([said(vector, "user/model")]))', HF_ENDPOINT="http://127.0.0.1:9"
    )
    assert unreachable.startswith("hf://user/model: the Hub can't be asked (")
    assert unreachable.endswith("check the connection, and try again.") and len(unreachable) < 450


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "model").mkdir(parents=True)
    for path, name in (
        ("user/model", "hf://user/model"),
        ("my/model", "my/model"),
        ("model", "model"),
        ("output/run/model.tar.gz", "output/run/model.tar.gz"),
        ("https://some.where/model", "https://some.where/model"),
    ):
        assert name_of(path) == name
    assert name_of("hf://user/model", "refs/pr/3") == "hf://user/model@refs/pr/3"
    for path in ("my/model", "hf://user/model@main", "hf://user/model/file"):
        with pytest.raises(ConfigurationError, match="A revision is one of a repository"):
            name_of(path, "v2")
    with pytest.raises(ConfigurationError, match=r"huggingface_hub.*pip install"):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        TransformerElmo.open("hf://user/model")


def test_under_allennlp(hub, run, tmp_path):
    """Configs name our model folders so; what others have on the Hub is AllenNLP's affair."""
    allennlp = pytest.importorskip("allennlp.models")
    from allennlp.common import Params
    from allennlp.data import Vocabulary

    hub.revisions["user/model"] = {"main": files_of(save_small_model(tmp_path / "folder"))}
    section = {
        "type": "basic_classifier",
        "text_field_embedder": {
            "token_embedders": {"tokens": {"type": "embedding", "embedding_dim": 2}}
        },
        "seq2vec_encoder": {"type": "boe", "embedding_dim": 2},
        "num_labels": 2,
    }
    other = tmp_path / "other"
    vocab = Vocabulary.empty()
    vocab.save_to_files(str(other / "vocabulary"))
    reader = {"type": "text_classification_json", "tokenizer": {"type": "just_spaces"}}
    config = {"dataset_reader": reader, "model": section, "train_data_path": "x"}
    (other / CONFIG).write_text(json.dumps(config))
    model = allennlp.Model.from_params(vocab=vocab, params=Params(copy.deepcopy(section)))
    torch.save(model.state_dict(), other / "weights.th")
    files = {str(p.relative_to(other)): p.read_bytes() for p in other.rglob("[!.]*.*")}
    hub.revisions["other/model"] = {"main": {**files, "notes.bin": b"x"}}
    expected = TransformerElmo.open(tmp_path / "folder", "cpu").embed([["the", "cat"]])[0]
    vectors, *found = run(
        """
import allennlp, torch, logging
from allennlp.common import Params
from allennlp.models import Model, load_archive
from allennlp.modules import TokenEmbedder
from allennlp.data.token_indexers import ELMoTokenCharactersIndexer
from allennlp.data import Token, Vocabulary

def embedder(name):
    params = {"type": "bidirectional_lm_token_embedder", "archive_file": name}
    return TokenEmbedder.from_params(Params(params)).eval()

words = ELMoTokenCharactersIndexer().tokens_to_indices([Token("the"), Token("cat")], Vocabulary())
vectors = embedder("hf://user/model")(torch.tensor([words["elmo_tokens"]]))[0].tolist()
from_archive = Params({"type": "from_archive", "archive_file": "hf://user/model"})
special = TransformerElmo.open("hf://user/model", "cpu", overrides={"model.dropout": 0.0})
print(json.dumps([
    vectors,
    type(Model.from_params(from_archive)).__name__,
    special.name,
    type(load_archive("hf://other/model").model).__name__,
    said(embedder, "hf://user/none"),
    said(TransformerElmo.open, "hf://other/model"),
]))
""",
        allennlp=True,
        ALLENNLP_CACHE_ROOT=str(tmp_path / "allennlp"),
    )
    assert np.allclose(vectors, expected, atol=1e-5)
    assert found[:3] == ["BidirectionalLanguageModel", "hf://user/model", "BasicClassifier"]
    assert found[3].startswith("hf://user/none: the Hub has no such repository")
    assert "hf://other/model holds a model of type 'basic_classifier'" in found[4]
    # One copy of each, in the cache of whose it is.
    ours, theirs = (
        [path.name for path in (tmp_path / cache).rglob("*") if path.suffix or path.is_symlink()]
        for cache in ("cache", "allennlp")
    )
    assert WEIGHTS in ours and "notes.bin" not in ours
    assert "notes.bin" in theirs and WEIGHTS not in theirs
