"""
The graph against the core. Those that write or run a graph are skipped where ONNX's packages aren't
installed. None needs AllenNLP: where it isn't installed, `pytest --noconftest tests/integrations`.
"""

import pickle
import random
import re
import shutil
import sys
from dataclasses import replace
from typing import Any, List

import numpy as np
import pytest
import torch

from transformer_elmo import TransformerElmo
from transformer_elmo.commands.cli import main
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.inference.vectors import all_layers
from transformer_elmo.integrations import onnx as session
from transformer_elmo.integrations.onnx import OnnxElmo
from transformer_elmo.nn import reference
from transformer_elmo.nn.transformer import PositionalEncoding
from transformer_elmo.pretrained import onnx as exporter
from transformer_elmo.pretrained.config import (
    CharactersConfig,
    ContextualizerConfig,
    ModelConfig,
    TextConfig,
    WordIdsConfig,
)
from transformer_elmo.pretrained.folder import reader_of
from transformer_elmo.text.vocabulary import UNKNOWN, WordList
from transformer_elmo.text.word_table import character_ids

DIM = 32
WORDS = [UNKNOWN, "<S>", "</S>", "the", "cat", "naïve", "東京", "sat", ".", "x" * 47, "y" * 60]

CHARACTERS = CharactersConfig(
    262,
    8,
    [(1, 8), (2, 8), (3, 16), (5, 8)],
    num_highway=2,
    projection_dim=DIM,
    activation="relu",
    projection_location="after_highway",
    do_layer_norm=True,
    own_characters={"<P>": 200},
)
TEXT = TextConfig(start_tokens=["<S>"], end_tokens=["</S>"])
CONFIG = ModelConfig(CHARACTERS, ContextualizerConfig(DIM, 64, 2), TEXT)
OTHER = replace(
    CONFIG,
    words=replace(
        CHARACTERS, activation="tanh", projection_location="after_cnn", do_layer_norm=False
    ),
    contextualizer=ContextualizerConfig(DIM, 48, 1, activation="relu_squared"),
)
IDS = replace(
    CONFIG,
    words=WordIdsConfig(len(WORDS) + 1, DIM),
    contextualizer=ContextualizerConfig(DIM, 48, 1),
    words_name="tokens",
)


def model_of(config, seed=0):
    torch.manual_seed(seed)
    model = config.build().eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            # Biases and gains that say nothing would hide that they are left out.
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    model.config = config
    return model


def elmo_of(config, **options):
    return TransformerElmo(model_of(config), reader_of(config, WordList(WORDS)), **options)


def random_batch(generator, batch_size, longest):
    """Sentences of words of all lengths, the first one as long as may be."""
    lengths = [longest, *(generator.randint(1, longest) for _ in range(batch_size - 1))]
    letters = "abcdefghéß東"
    return [
        [
            generator.choice([*WORDS, "<P>", "".join(generator.choices(letters, k=k % 60 + 1))])
            for k in generator.choices(range(300), k=length)
        ]
        for length in lengths
    ]


BATCHES = [(1, 1), (1, 2), (1, 9), (4, 1), (3, 7), (8, 30), (2, 150)]


def inputs_and_layers(elmo, tokens):
    """What the graph takes for a batch, and what the core makes of it."""
    batch = elmo._reader.batch(tokens, torch.device("cpu"))
    words = batch.token_ids if elmo.model.embeds_ids else batch.characters[batch.word_index]
    with torch.no_grad():
        encoded = elmo.model.encode(batch)
    layers = torch.stack(all_layers(encoded.word_vectors, encoded.layers))
    return words, torch.from_numpy(batch.lengths), layers * encoded.mask.unsqueeze(-1)


def assert_same_function(elmo, run):
    generator = random.Random(5)
    for shape in BATCHES:
        words, lengths, expected = inputs_and_layers(elmo, random_batch(generator, *shape))
        found = run(words, lengths)
        assert found.shape == expected.shape and found.dtype == torch.float32
        assert torch.isfinite(found).all()
        # In float32 a sum of numbers as large as 10 has an error of some 1e-6.
        assert (found - expected).abs().max() < 1e-5, shape


# The module that is written down as a graph: `nn.reference`, over distinct words.


def test_padding_is_neither_seen_nor_shown():
    elmo = elmo_of(CONFIG)
    module = exporter.graph_module(elmo.model)
    words, lengths, _ = inputs_and_layers(elmo, random_batch(random.Random(6), 4, 9))
    lengths = torch.tensor([9, 4, 1, 0])
    other = torch.where(
        (torch.arange(9) < lengths.unsqueeze(1)).unsqueeze(-1), words, torch.randint(262, (50,))
    )
    with torch.no_grad():
        one, two = module(words, lengths), module(other, lengths)
    assert torch.allclose(one, two, atol=1e-6)
    assert one[:, 1, :4].ne(0).all() and not one[:, 1, 4:].any() and not one[:, 3].any()


# The graph.


@pytest.fixture(scope="session")
def onnxruntime():
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    return pytest.importorskip("onnxruntime")


@pytest.fixture(scope="session")
def exported(onnxruntime, tmp_path_factory):
    """
    By the lines of the docstring, from weights in float16 of a model that multiplies in bfloat16;
    then moved, with nothing left where it was.
    """
    home = tmp_path_factory.mktemp("onnx")
    elmo_of(replace(CONFIG, precision="bfloat16")).save(home / "elmo", dtype="float16")
    (block,) = re.findall(r"```python\n(.*?)```", session.__doc__, re.DOTALL)
    assert len(list(filter(None, block.splitlines()))) == 5
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        exec(block, names)
    assert names["vectors"].shape == (7, 2 * DIM)
    shutil.rmtree(home / "elmo")
    return (home / "elmo_onnx").rename(tmp_path_factory.mktemp("elsewhere") / "moved")


@pytest.fixture(scope="session")
def exported_ids(onnxruntime, tmp_path_factory):
    """By the command."""
    home = tmp_path_factory.mktemp("onnx")
    elmo_of(IDS).save(home / "source")
    assert main(["export", str(home / "source"), str(home / "folder"), "--onnx"]) == 0
    return home / "folder"


def _all_of(model):
    parameters = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    return parameters, [(id(module), module.training) for module in model.modules()]


@pytest.fixture(scope="session")
def other_elmo():
    """Of a table of 8 positions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PositionalEncoding.__init__, "__defaults__", (8,))
        return elmo_of(OTHER)


@pytest.fixture(scope="session")
def exported_other(onnxruntime, other_elmo, tmp_path_factory):
    """In the midst of a training, with its weights in a file of their own; then moved."""
    folder = tmp_path_factory.mktemp("onnx")
    before = _all_of(other_elmo.model.train())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "MOST_WITHIN", 0)
        patch.setattr(reference, "NUM_POSITIONS", 8)
        exporter.write_onnx(other_elmo.model, folder)
    # Whoever is training it meanwhile sees nothing; its graph is without dropout all the same.
    assert _all_of(other_elmo.model) == before and other_elmo.model.training
    other_elmo.model.eval()
    return folder.rename(folder.with_name("moved"))


def runner(onnxruntime, folder):
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    name = session.get_inputs()[0].name

    def run(words, lengths):
        (layers,) = session.run(["layers"], {name: words.numpy(), "lengths": lengths.numpy()})
        return torch.from_numpy(layers)

    return run


def test_graph_of_characters(onnxruntime, exported):
    assert sorted(path.name for path in exported.iterdir()) == [
        "README.md",
        "config.json",
        "model.onnx",
        "model.safetensors",
        "vocabulary.txt",
    ]
    elmo = TransformerElmo.open(exported, "cpu", "float32")
    assert_same_function(elmo, runner(onnxruntime, exported))


def test_graph_of_other_characters_with_weights_beside_it(onnxruntime, exported_other, other_elmo):
    assert {"model.onnx", "model.onnx.data"} <= {path.name for path in exported_other.iterdir()}
    assert (exported_other / "model.onnx").stat().st_size < 500_000
    assert_same_function(other_elmo, runner(onnxruntime, exported_other))


def test_graph_of_word_ids(onnxruntime, exported_ids):
    elmo = TransformerElmo.open(exported_ids, "cpu")
    assert_same_function(elmo, runner(onnxruntime, exported_ids))


def test_inputs_and_outputs(onnxruntime, exported, exported_ids):
    import onnx

    for folder, name, shape in ((exported, "characters", [50]), (exported_ids, "token_ids", [])):
        model = onnx.load(folder / "model.onnx")
        onnx.checker.check_model(model)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        words, lengths = session.get_inputs()
        (layers,) = session.get_outputs()
        assert (words.name, lengths.name, layers.name) == (name, "lengths", "layers")
        assert (words.type, lengths.type) == ("tensor(int64)", "tensor(int64)")
        assert layers.type == "tensor(float)"
        assert words.shape[2:] == shape and all(isinstance(n, str) for n in words.shape[:2])
        num_layers = TransformerElmo.open(folder).num_layers
        assert [layers.shape[0], layers.shape[3]] == [num_layers, 2 * DIM]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0), (2, 3)])
def test_nothing_to_embed(onnxruntime, exported, exported_ids, shape):
    lengths = torch.zeros(shape[0], dtype=torch.long)
    for folder, rest in ((exported, (50,)), (exported_ids, ())):
        found = runner(onnxruntime, folder)(torch.zeros(*shape, *rest, dtype=torch.long), lengths)
        assert found.shape[1:3] == shape and not found.any()


def test_the_card_says_how_words_become_numbers(exported, exported_ids):
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "`characters` | int64 (batch, words, 50)" in card
    assert "float32 (3, batch, words, 64)" in card
    assert "begins with `<S>` and ends with `</S>`" in card
    first, most, last, padding = map(
        int, re.search(r"word: (\d+), .* \((\d+) at most\), (\d+), and (\d+) to", card).groups()
    )
    single = {word: int(number) for number, word in re.findall(r"(\d+) for `([^`]+)`", card)}
    assert set(single) == {"<S>", "</S>", "<P>"}
    for word in [*WORDS, "<P>"]:
        middle = [single[word]] if word in single else [b + 1 for b in word.encode()[:most]]
        ids = [first, *middle, last]
        expected = character_ids([word], CHARACTERS.own_characters)[0].tolist()
        assert [*ids, *[padding] * (50 - len(ids))] == expected
    assert "`token_ids` | int64 (batch, words)" in (exported_ids / "README.md").read_text()


# OnnxElmo.

SENTENCES = [*random_batch(random.Random(7), 20, 12), "the cat sat .", "", ["the"], []]


@pytest.mark.parametrize("by_ids", [False, True])
def test_embeds_as_transformer_elmo(exported, exported_ids, by_ids):
    folder = exported_ids if by_ids else exported
    elmo, ours = TransformerElmo.open(folder, "cpu", "float32"), OnnxElmo(folder, max_tokens=60)
    assert (ours.num_layers, ours.dim) == (elmo.num_layers, elmo.dim)
    for layers in ("mix", "all", "top", 0, -1, np.int64(1)):
        expected, found = elmo.embed(SENTENCES, layers), ours.embed(iter(SENTENCES), layers)
        assert [v.shape for v in found] == [v.shape for v in expected]
        for one, two in zip(found, expected):
            # It doesn't hold on to the whole batch.
            held = one if one.base is None else one.base
            assert one.dtype == np.float32 and held.nbytes == one.nbytes
            assert np.abs(one - two).max(initial=0) < 1e-5
    weights = [0.5, -2.0, 3.0][: elmo.num_layers]
    for one, two in zip(
        ours.embed(SENTENCES, weights=weights), elmo.embed(SENTENCES, weights=weights)
    ):
        assert np.abs(one - two).max(initial=0) < 1e-5
    assert ours.embed([]) == []


def test_long_sentences_go_in_segments(exported):
    words = random_batch(random.Random(8), 1, 70)[0]
    for length in (16, None):
        elmo = TransformerElmo.open(exported, "cpu", "float32", segment_length=length)
        ours = OnnxElmo(exported, segment_length=length)
        for layers in ("mix", "all"):
            (expected, _), (found, _) = (
                either.embed([words, ["the"]], layers) for either in (elmo, ours)
            )
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() < 1e-5


def test_inputs_for_a_session_of_ones_own(onnxruntime, exported, exported_ids):
    for folder in (exported, exported_ids):
        ours = OnnxElmo(folder)
        inputs = ours.inputs(["the cat", ["sat"]])
        assert inputs["lengths"].tolist() == [4, 3]
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        (layers,) = session.run(None, inputs)
        (one, two) = ours.embed(["the cat", ["sat"]], "all")
        assert np.allclose(layers[:, 0, 1:3], one, atol=1e-6)
        assert np.allclose(layers[:, 1, 1:2], two, atol=1e-6)
        assert not layers[:, 1, 3].any()


def test_options(onnxruntime, exported):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    ours = OnnxElmo(
        exported, tokenizer=list, sess_options=options, providers=["CPUExecutionProvider"]
    )
    assert ours.embed(["abc"])[0].shape == (3, 2 * DIM)


# What cannot be done.


def test_wrong_sentences_and_layers(exported):
    ours = OnnxElmo(exported)
    with pytest.raises(TypeError, match="put it in a list"):
        ours.embed("the cat")
    with pytest.raises(TypeError, match="put it in a list"):
        ours.inputs("the cat")
    sentences: List[Any] = [["the", 3], {"the": 1}, {"the"}, {"the": 1}.keys(), b"the", None]
    for sentence in sentences:
        for call in (ours.embed, ours.inputs):
            with pytest.raises(TypeError, match="list of strings"):
                call([sentence])
            if sentence != ["the", 3]:
                with pytest.raises(TypeError, match="Expected a list of sentences"):
                    call(sentence)
    wrong: List[Any] = ["middle", 3, -4, True, None]
    for layers in wrong:
        with pytest.raises(ValueError, match=r"to 2 \(top\)"):
            ours.embed(["the"], layers)
    with pytest.raises(ValueError, match="3 numbers"):
        ours.embed(["the"], weights=[1.0])
    with pytest.raises(ValueError, match="weights are for layers"):
        ours.embed(["the"], "top", weights=[1.0, 1.0, 1.0])


def test_folders_that_have_no_graph(onnxruntime, exported, exported_ids, tmp_path):
    elmo_of(CONFIG).save(tmp_path / "bare")
    with pytest.raises(ConfigurationError, match=r"no model.onnx.*--onnx"):
        OnnxElmo(tmp_path / "bare")
    shutil.copytree(exported, tmp_path / "damaged")
    graph = tmp_path / "damaged" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(ConfigurationError, match=r"damaged/model.onnx can't be opened"):
        OnnxElmo(tmp_path / "damaged")
    shutil.copytree(exported_ids, tmp_path / "words")
    with open(tmp_path / "words" / "vocabulary.txt", "a") as vocabulary:
        vocabulary.write("more\n")
    with pytest.raises(ConfigurationError, match="the vocabulary has 12 words, the weights 11"):
        OnnxElmo(tmp_path / "words")


def refused(capsys, *arguments):
    assert main(["export", *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_packages_that_are_missing(missing, tmp_path, monkeypatch, capsys):
    elmo_of(CONFIG).save(tmp_path / "source")
    monkeypatch.setitem(sys.modules, missing, None)
    # Before the model is looked for, which may take long.
    for source in (tmp_path / "source", tmp_path / "none"):
        message = refused(capsys, source, tmp_path / "folder", "--onnx")
        assert "pip install onnx onnxscript onnxruntime" in message and missing in message
    with pytest.raises(ConfigurationError, match="pip install"):
        elmo_of(CONFIG).save(tmp_path / "folder", onnx=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_onnxruntime_is_missing(tmp_path, monkeypatch):
    elmo_of(CONFIG).save(tmp_path / "source")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigurationError, match=r"onnxruntime .*pip install onnx"):
        OnnxElmo(tmp_path / "source")


def test_a_torch_that_is_too_old(onnxruntime, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ConfigurationError, match=r"torch 2\.6 or later; this is 2\.5\.1\+cpu"):
        exporter.check_packages()
    monkeypatch.setattr(torch, "__version__", "2.10.0a0+git")
    exporter.check_packages()


def test_a_broken_model_leaves_nothing(onnxruntime, tmp_path):
    elmo = elmo_of(CONFIG)
    with torch.no_grad():
        elmo.model.words.projection.weight[3, 4] = float("nan")
    with pytest.raises(ConfigurationError, match=r"projection.weight has a NaN"):
        elmo.save(tmp_path / "folder", onnx=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError("exporter"), KeyboardInterrupt()])
def test_a_graph_that_cannot_be_written_leaves_the_old_folder(
    onnxruntime, tmp_path, monkeypatch, error
):
    elmo = elmo_of(CONFIG)
    elmo.save(tmp_path / "folder")
    before = {p.name: p.read_bytes() for p in (tmp_path / "folder").iterdir()}

    def failing(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.onnx, "export", failing)
    with pytest.raises(type(error)):
        elmo.save(tmp_path / "folder", onnx=True, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "folder").iterdir()} == before


def test_pickled(exported, exported_ids, tmp_path, monkeypatch):
    for folder in (exported, exported_ids.name):
        monkeypatch.chdir(exported_ids.parent)
        ours = OnnxElmo(folder, tokenizer=list, max_tokens=20, providers=["CPUExecutionProvider"])
        expected = ours.embed(["abc"])[0]
        data = pickle.dumps(ours)
        monkeypatch.chdir(tmp_path)
        other = pickle.loads(data)
        assert other.max_tokens == 20 and np.array_equal(other.embed(["abc"])[0], expected)
