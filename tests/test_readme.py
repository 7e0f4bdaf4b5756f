"""README.md and the pages of docs/: what they say to type works, copied from there."""

import io
import json
import re
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from allennlp.commands import main as allennlp
from allennlp.commands import parse_args

from tests.small_lm import DIM, random_sentences
from transformer_elmo import TransformerElmo
from transformer_elmo.commands.cli import main as transformer_elmo
from transformer_elmo.pretrained.jsonnet import VARIABLES, evaluated_file
from transformer_elmo.with_allennlp import is_registered

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = {path.name: path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")}
PAGES["docs/README.md"] = PAGES.pop("README.md")
PAGES["README.md"] = README.read_text("utf-8")

# What the Python of each page prints, some of it.
PRINTED = {
    "README.md": [f"(6, {2 * DIM})\n", "['"],
    "python.md": ["['", f" {2 * DIM}\n", "raining"],
    "command-line.md": [],
    "allennlp.md": ["Seattle", "allennlp.commands.train.train_model - "],
    "flair-spacy-onnx.md": ["torch.Size", "0.", f"(7, {2 * DIM})"],
}


def python_of(page):
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)


def commands_of(page, section=""):
    """What is indented and begins with a command."""
    text = PAGES[page].partition(section)[2].partition("\n## ")[0] if section else PAGES[page]
    pattern = r"^(?: {4}|- | {6,7})((?:export|echo|allennlp|transformer-elmo|torchrun|srun) .*)$"
    return re.findall(pattern, text, re.MULTILINE)


@pytest.fixture
def run(monkeypatch, capsys):
    """A line as a shell runs it, without what `allennlp` does to find plugins; what it printed."""
    monkeypatch.setattr("allennlp.commands.import_plugins", lambda: None)

    def run(line):
        line, _, file = line.partition(" > ")
        words = shlex.split(line, comments=True)
        if words[0] == "export":
            for word in words[1:]:
                monkeypatch.setenv(*word.split("=", 1))
            return ""
        if words[0] == "echo":
            stdin = io.TextIOWrapper(io.BytesIO(f"{words[1]}\n".encode()))
            monkeypatch.setattr(sys, "stdin", stdin)
            words = words[words.index("|") + 1 :]
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        assert not {"allennlp": allennlp, "transformer-elmo": transformer_elmo}[words[0]](), line
        printed = capsys.readouterr().out
        if file:
            Path(file.split()[0]).write_text(printed, encoding="utf-8")
        return printed

    return run


@pytest.fixture
def work(tmp_path, monkeypatch, lm_archive):
    """A folder with the files that the Python of the pages opens."""
    monkeypatch.chdir(tmp_path)
    Path("output_path").mkdir()
    Path("output_path/model.tar.gz").symlink_to(lm_archive)
    TransformerElmo.open(lm_archive).save("elmo")
    Path("held-out.txt").write_text("the dog ran\nit was happy .\n")
    Path("text.txt").write_text("the tree\n\nit was unheard-of\n")
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * ("flair" in page)) for page in PRINTED],
)
def test_python(page, work, run, capsys):
    if page == "command-line.md":
        for command in commands_of(page)[:2]:
            run(command)
    names, missing = {}, set()
    for block in python_of(page):
        libraries = re.findall(r"^ *(?:import|from) (\w+)", block, re.MULTILINE)
        if "OnnxElmo" in block:
            libraries += ["onnx", "onnxscript", "onnxruntime"]
        absent = {name for name in libraries if find_spec(name) is None}
        missing |= absent
        if not absent:
            exec(block, names)
    if missing:
        pytest.skip(f"without {', '.join(missing)}")
    printed = capsys.readouterr().out
    for text in PRINTED[page]:
        assert text in printed
    for expected in re.findall(r"this prints\n\n```\n(.*?)```", PAGES[page], re.DOTALL):
        assert printed.endswith(expected.replace("256)", f"{2 * DIM})"))


def test_all_python_is_run():
    assert {page for page in PAGES if python_of(page)} == set(PRINTED)


def test_your_own_text(tmp_path, monkeypatch, run):
    """What is made of the text needs neither it nor the folder that it was made in."""
    (tmp_path / "work" / "text").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    for name, count in ("text/0.txt", 40), ("text/1.txt", 40), ("held-out.txt", 10):
        Path(name).write_text("\n".join(random_sentences(count, seed=count)), encoding="utf-8")
    commands = commands_of("README.md", "## Train on your own text")
    assert commands_of("own-text.md") == [c.partition("#")[0].strip() for c in commands]
    vocab, config, export, train, *use = commands
    for command in (vocab, config, export):
        run(command)
    # Fewer samples than the vocabulary has words, and two epochs.
    mine = Path("mine.jsonnet")
    text = mine.read_text("utf-8")
    small = text.replace("samples: 1024, epochs: 10", "samples: 8, epochs: 2")
    mine.write_text(small, encoding="utf-8")
    run(train)
    away = tmp_path / "away"
    away.mkdir()
    for name in ("model", "held-out.txt"):
        shutil.move(name, away)
    monkeypatch.chdir(away)
    shutil.rmtree(tmp_path / "work")
    printed = [run(command) for command in use]
    assert small != text and len(json.loads(printed[1])["gaps"]) == 2
    assert np.load("vectors.npz")["vectors"].shape[1] == 512


def test_adapting(tmp_path, monkeypatch, lm_archive, run):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/model.tar.gz").symlink_to(lm_archive)
    new = "the owl flew over the barn .\nan owl and a cat sat in the barn .\nan owl ran .\n"
    Path("new.txt").write_text(new * 5)
    Path("new-held-out.txt").write_text(new)
    for name in ("tagged.txt", "tagged-held-out.txt"):
        Path(name).write_text("the###D dog###N ran###V .###.\na###D cat###N sat###V\n")
    # Of the model that is here.
    size = 'input_size": 512', f'input_size": {2 * DIM}'
    printed = [run(command.replace(*size)) for command in commands_of("adapting.md")]
    words = [TransformerElmo.open(f"{name}/model.tar.gz").vocab for name in ("model", "adapted")]
    assert ["owl" in vocab for vocab in words] == [False, True]
    assert any("B's perplexity is 0." in text for text in printed)
    assert Path("tagger/model.tar.gz").exists()


@pytest.mark.parametrize("size, dim, layers", [("1M", 256, 2), ("10M", 512, 3), ("100M", 512, 6)])
def test_sizes_of_own_text(tmp_path, run, size, dim, layers):
    assert f"\n| {size} | {dim} | {layers} | " in PAGES["own-text.md"]
    (tmp_path / "mine.jsonnet").write_text(run(f"transformer-elmo config own_text --size {size}"))
    config = evaluated_file(tmp_path / "mine.jsonnet", dict.fromkeys(VARIABLES, "there"))
    embedders = config["model"]["text_field_embedder"]["token_embedders"]
    contextualizer = config["model"]["contextualizer"]
    assert contextualizer["num_layers"] == layers
    for section, key in (
        (embedders["token_characters"]["encoder"], "projection_dim"),
        (contextualizer, "input_dim"),
        (config["trainer"]["learning_rate_scheduler"], "model_size"),
    ):
        assert section[key] == dim, key


def test_every_command_has_arguments_that_it_takes(tmp_path, monkeypatch):
    """Those of files that aren't there end with a message, and not with usage."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("allennlp.commands.import_plugins", lambda: None)
    lines = [line for page in PAGES for line in commands_of(page)]
    lines += re.findall(r"^\| `(transformer-elmo .*?)`", "\n".join(PAGES.values()), re.MULTILINE)
    assert len(lines) > 30
    for line in lines:
        words = shlex.split(line.partition(" > ")[0], comments=True)
        if "allennlp" in words:
            monkeypatch.setattr(sys, "argv", words[words.index("allennlp") :])
            parse_args(prog="allennlp")
        elif words[0] == "transformer-elmo" and words[1] != "config":
            assert transformer_elmo(words[1:]) == 1, line


def test_names_for_configs_are_registered():
    _, _, section = PAGES["allennlp.md"].partition("## What a config can name\n")
    # "Words: their meaning" has a name before the colon alone.
    rows = re.findall(r"^\| [\w, ]+ \| (.*?)(?::.*)? \|$", section, re.MULTILINE)
    named = [name for row in rows for name in re.findall("`(.+?)`", row)]
    assert len(named) > 15
    assert not [name for name in named if not is_registered(name)]


def anchors(text):
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_is_there(page):
    text = PAGES[page]
    path = README if page == "README.md" else ROOT / "docs" / page.removeprefix("docs/")
    for name in re.findall(r"(?:\./)?((?:scripts|training_config)/[\w/.-]+\.\w+)", text):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([^):]+)\)", text):
        name, _, anchor = link.partition("#")
        target = path if not name else (path.parent / name).resolve()
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target.read_text("utf-8")), link
    for name in re.findall(r"docs/[\w-]+\.md", text):
        assert (ROOT / name).is_file(), name


def test_the_readme_is_short_and_every_page_is_listed():
    assert PAGES["README.md"].count("\n") <= 220
    listed = PAGES["docs/README.md"]
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"]({path.name})" in listed
    # `transformer-elmo config` and comments of configs name pages, too.
    for config in (ROOT / "training_config").rglob("*sonnet"):
        for name in re.findall(r"docs/[\w-]+\.md", config.read_text("utf-8")):
            assert (ROOT / name).is_file(), f"{config}: {name}"
