"""Models on the Hub, by huggingface_hub as it is, of a Hub on this machine."""

import json
import sys
import threading
from typing import Any

import numpy as np
import pytest

from tests.integrations.hub_server import NOT_FOUND, TOKEN, Hub
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
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


@pytest.fixture
def run(hub, tmp_path, in_new_process):
    """From code to what it prints, in a process that knows this Hub and a cache of its own."""

    def run(code: str, **variables: Any) -> Any:
        hubs = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": ""}
        hubs |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
        return json.loads(in_new_process(START + code, tmp_path, **{**hubs, **variables}))

    return run


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_goes_up_and_comes_down(hub, run, tmp_path):
    folder = save_small_model(tmp_path / "folder")
    expected = TransformerElmo.open(folder, "cpu").embed([["the", "cat"]])[0].tolist()
    hub.revisions["user/model"] = {
        "main": {"model.onnx": b"of another model", "notes.txt": b"x"},
        "v2": {**files_of(folder), "pytorch_model.bin": b"pickle", "a.py": b"x"},
    }
    address, message, *found, again = run(
        f"""
elmo = TransformerElmo.open("folder")
card = {{"license": "apache-2.0", "language": "en", "tags": ["legal"], "corpus": "made up"}}
address = elmo.push_to_hub("user/model", token="{TOKEN}", card=card)
elmo.push_to_hub("user/other", token="{TOKEN}", private=True, with_softmax=False)
print(json.dumps([
    address,
    said(elmo.push_to_hub, "user/model"),
    vector("user/model"),
    vector("hf://user/model", revision="v2"),
    vector("user/other", token="{TOKEN}", softmax=False, device="cpu"),
    TransformerElmo.open("hf://user/model@v2").name,
]))
"""
    )
    assert address == f"{hub.url}/user/model"
    assert message.startswith("user/model: ") and "log in" in message and "\n" not in message
    names = ["hf://user/model", "hf://user/model@v2", "hf://user/other"]
    assert found == [[name, expected] for name in names] and again == names[1]
    files = hub.revisions["user/model"]["main"]
    # A graph of what was there before isn't this model's.
    assert set(files) == {*FOLDER, "notes.txt"}
    card = files[CARD].decode()
    assert yaml.safe_load(card.split("---\n")[1]) == {
        "library_name": "transformer-elmo",
        "license": "apache-2.0",
        "language": "en",
        "tags": ["elmo", "word-embeddings", "language-model", "legal"],
    }
    assert "| corpus | made up |" in card and "| license |" not in card
    assert {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path} == FOLDER
    # From the cache alone.
    hub.asked.clear()
    *offline, missing, status = run(
        """
from transformer_elmo.commands.cli import main
print(json.dumps([vector("user/model"), vector("user/model", revision="v2"),
    said(vector, "user/none"), main(["nearest", "hf://user/model", "cat"])]))
""",
        HF_HUB_OFFLINE="1",
    )
    assert offline == found[:2] and status == 0 and not hub.asked
    assert missing.startswith("hf://user/none: it isn't in the cache, and HF_HUB_OFFLINE")


def test_what_cannot_be_had(hub, run, tmp_path):
    files = files_of(save_small_model(tmp_path / "folder"))
    contents = dict.fromkeys(("user/secret", "user/gated", "user/model"), files)
    contents["user/bert"] = {CONFIG: b'{"model_type": "bert"}', WEIGHTS: b"large"}
    contents["user/empty"] = {"README.md": b"soon"}
    contents["user/damaged"] = {**files, WEIGHTS: files[WEIGHTS][:500]}
    hub.revisions.update({name: {"main": content} for name, content in contents.items()})
    hub.closed = {"user/secret": NOT_FOUND, "user/gated": (403, "GatedRepo")}
    expected = {
        "user/none": "no such repository, or it is a private one",
        "user/secret": "no such repository, or it is a private one",
        "user/gated": "gives access on request",
        "user/bert": "holds no model folder of transformer-elmo",
        "user/empty": "holds no model folder of transformer-elmo",
        "user/damaged": "/model.safetensors is not a file of weights",
        "user/a--b": "no such names",
        "user/model@v9": "no such revision",
    }
    *found, with_token = run(
        f"""
results = [said(TransformerElmo.from_pretrained, name) for name in {list(expected)!r}]
results += [said(TransformerElmo.from_pretrained, "user/secret", token="{TOKEN}")]
print(json.dumps(results))
"""
    )
    for message, (name, part) in zip(found, expected.items()):
        assert message.startswith(f"hf://{name}") and part in message and "\n" not in message
    assert with_token.startswith("TransformerElmo(model: hf://user/secret, ")
    assert not any("bert" in path and WEIGHTS in path for path in hub.asked)
    unreachable = run(
        'print(json.dumps(said(vector, "user/model")))', HF_ENDPOINT="http://127.0.0.1:9"
    )
    assert unreachable.startswith("hf://user/model: the Hub can't be asked (")
    assert "check the connection" in unreachable and len(unreachable) < 450


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


def test_under_allennlp(request, hub, run, tmp_path):
    """Configs name model folders so; archives on the Hub are AllenNLP's to bring."""
    pytest.importorskip("allennlp")
    archive = request.getfixturevalue("lm_archive").parent
    files = {str(p.relative_to(archive)): p.read_bytes() for p in archive.rglob("[!.]*.*")}
    hub.revisions["other/model"] = {"main": files}
    hub.revisions["user/model"] = {"main": files_of(save_small_model(tmp_path / "folder"))}
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
print(json.dumps([
    vectors,
    type(Model.from_params(from_archive)).__name__,
    TransformerElmo.open("hf://user/model", "cpu", overrides={"model.dropout": 0.0}).name,
    type(load_archive("hf://other/model").model).__name__,
    TransformerElmo.open("hf://other/model").dim,
    said(embedder, "hf://user/none"),
]))
""",
        allennlp=True,
        ALLENNLP_CACHE_ROOT=str(tmp_path / "allennlp"),
    )
    assert np.allclose(vectors, expected, atol=1e-5)
    model = "BidirectionalLanguageModel"
    assert found[:4] == [model, "hf://user/model", model, 64]
    assert found[4].startswith("hf://user/none: the Hub has no such repository")
