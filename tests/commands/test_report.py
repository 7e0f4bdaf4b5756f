"""`transformer-elmo report`, and what is in the report."""

import json
import math
import re
import shutil
import sys
import tarfile
from html import unescape
from pathlib import Path

import pytest
import torch
from allennlp.commands import main as allennlp
from allennlp.modules.scalar_mix import ScalarMix

from tests.small_lm import random_sentences
from transformer_elmo import TransformerElmo
from transformer_elmo.commands.report import mixtures_in
from transformer_elmo.commands.report.facts import Fact, TrainingLog, results_of
from transformer_elmo.commands.report.sentences import worth_showing


@pytest.fixture
def run(lm_archive, tmp_path):
    """The folder of a training run of three epochs."""
    folder, heldout = tmp_path / "run", tmp_path / "heldout.txt"
    folder.mkdir()
    for file in (lm_archive, lm_archive.parent / "config.json"):
        shutil.copy(file, folder)
    heldout.write_text("\n".join(random_sentences(30, seed=41, longest=20)), encoding="utf-8")
    change_config(folder, validation_data_path=str(heldout))
    for epoch, perplexity in enumerate((160.0, 120.0, 80.0)):
        metrics = {
            "epoch": epoch,
            "training_duration": f"0:0{2 * epoch + 2}:00.1",
            "training_perplexity": perplexity + 5,
            "validation_perplexity": perplexity,
            "best_validation_perplexity": perplexity,
        }
        for name in (f"metrics_epoch_{epoch}", "metrics"):
            (folder / f"{name}.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def report(command, tmp_path):
    """The page that is written; or, if nothing can be, what the command says."""

    def make(*arguments, **options):
        output = tmp_path / "report.html"
        said = command("report", *arguments, "-o", output, "--force", **options)
        return said if options else output.read_text(encoding="utf-8")

    return make


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def remarks_in(page):
    return list(map(unescape, re.findall(r'<p class="remark">(.*?)</p>', page)))


def words_in(page):
    """Those of the sentences, and not those that would be likelier."""
    return re.findall(r'<span class="c"><bdi[^>]*>(.*?)</bdi>', page)


def test_language_model(run, report, monkeypatch, capsys):
    monkeypatch.setattr("allennlp.commands.import_plugins", lambda: None)
    monkeypatch.setattr(sys, "argv", ["allennlp", "lm-report", str(run), "--num-sentences", "2"])
    allennlp()
    output = run / "report.html"
    assert capsys.readouterr().out.split() == [str(output)]
    page = output.read_text(encoding="utf-8")
    # One file, and nothing from elsewhere.
    assert not re.findall(r"(?:src|href)=|url\(|<script|@import", page)
    assert "bidirectional_language_model_transformer" in page
    assert "&lt;S&gt;" in page and "<S>" not in page
    assert page.count("<h3>Sentence") == 2 and not remarks_in(page)
    assert ">80.0000 <" in page and f">{math.log(80):.4f} <" in page and ">0:06:00<" in page
    with pytest.raises(SystemExit, match=r"allennlp lm-report: .*exists\. Give --force"):
        allennlp()
    page = report(run, "--num-sentences", 0)
    assert "Sentence 1" not in page and not remarks_in(page)


def test_sentences_of_ones_own(run, report, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("\nunheard-of cat\n1 <S> @@PADDING@@\n2\nthe dog sat on a mat\n")
    page = report(run, "--sentences", text)
    # As they come, whatever they are.
    assert page.count("<h3>Sentence") == 3 and not remarks_in(page)
    shown = " ".join(words_in(page)).replace("&lt;S&gt;", "^").replace("&lt;/S&gt;", "$")
    assert shown == "^ unheard-of cat $ ^ 1 ^ @@PADDING@@ $ ^ 2 $"
    assert f"<code>{text}</code>" in page
    elmo = TransformerElmo.from_archive(run / "model.tar.gz", device="cpu")
    (scores,) = elmo.score(["unheard-of cat"])
    assert f"perplexity {scores.perplexity:,.1f}" in page
    assert f">{-scores.backward.log_probs[1] / math.log(2):.1f}</span>" in page


def test_an_archive_alone(command, run, tmp_path):
    for file in run.iterdir():
        if file.name != "model.tar.gz":
            file.unlink()
    heldout = tmp_path / "heldout.txt"
    written = command("report", run / "model.tar.gz", "--sentences", heldout).strip()
    assert written == str(run / "report.html")
    page = Path(written).read_text(encoding="utf-8")
    assert "<h1>Model run/model.tar.gz</h1>" in page and "<dt>epochs" not in page
    assert "model.contextualizer.num_layers" in page and words_in(page)


def test_a_model_folder(run, report, tmp_path):
    whole, bare, heldout = (tmp_path / name for name in ("whole", "bare", "heldout.txt"))
    model = TransformerElmo.open(run / "model.tar.gz")
    model.save(whole)
    model.save(bare, with_softmax=False)
    page = report(whole, "--sentences", heldout)
    assert words_in(page) and not remarks_in(page)
    assert "Name one with --sentences" in remarks_in(report(whole))[0]
    assert "no softmax" in remarks_in(report(bare, "--sentences", heldout))[0]


def test_a_language_model_that_was_trained_further(run, report, lm_archive):
    """Its config names the archive that it began with, and not what it is."""
    change_config(run, model={"type": "from_archive", "archive_file": str(lm_archive)})
    (run / "model.tar.gz").unlink()
    shutil.copytree(lm_archive.parent / "vocabulary", run / "vocabulary")
    shutil.copy(lm_archive.parent / "weights.th", run / "best.th")
    page = report(run)
    assert page.count("<h3>Sentence") == 3 and not remarks_in(page)
    assert f"<dd>{lm_archive}</dd>" in page


def test_what_is_missing_is_said(run, report, tmp_path, caplog):
    heldout, empty = tmp_path / "heldout.txt", tmp_path / "empty.txt"
    empty.write_text("\n \n")
    for data, message in (
        ("gone.txt", "the validation data isn't here: No file matches"),
        (None, "the config has no validation data. Name a text with --sentences"),
        (str(empty), "there is no sentence in"),
    ):
        change_config(run, validation_data_path=data)
        (remark,) = remarks_in(report(run))
        assert message in remark and message in caplog.text
    (run / "model.tar.gz").write_bytes(b"damaged")
    change_config(run, validation_data_path=str(heldout))
    (remark,) = remarks_in(report(run))
    assert "the language model can't be opened" in remark and "complete .tar.gz" in remark
    change_config(run, model={"type": "simple_tagger"})
    (remark,) = remarks_in(report(run))
    assert remark.startswith("The weights can't be read:")


def test_a_run_that_has_just_begun(run, report):
    (run / "model.tar.gz").unlink()
    (run / "metrics.json").unlink()
    page = report(run)
    ended, weights = remarks_in(page)
    assert "training hasn't ended: these are the numbers after epoch 2" in ended
    assert "There are no weights yet" in weights and ">3 <" in page


def mixture_weights(*parameters, of="_text_field_embedder.token_embedder_elmo._scalar_mix"):
    mix = ScalarMix(len(parameters), initial_scalar_parameters=list(parameters))
    return {f"{of}.{key}": value for key, value in mix.state_dict().items()}


def test_downstream_model(run, report, tmp_path):
    torch.save(mixture_weights(1.0, 0.0, -1.0), run / "best.th")
    change_config(run, model={"type": "simple_tagger"})
    with tarfile.open(run / "model.tar.gz", "w:gz") as archive:
        archive.add(run / "best.th", "weights.th")
    expected = torch.softmax(torch.tensor([1.0, 0.0, -1.0]), 0).tolist()
    for weights in (run / "best.th", run / "model.tar.gz"):
        page = report(run)
        found = re.findall(r'<th scope="row">(.*?)</th><td class="num">(.*?)</td>', page)
        layers = ("words", "layer 1", "top")
        assert found == [(name, f"{w:.3f}") for name, w in zip(layers, expected)]
        assert not remarks_in(page)
        weights.unlink()
    torch.save({"_encoder.weight": torch.ones(2)}, run / "weights.th")
    (remark,) = remarks_in(report(run))
    assert "has no mixture" in remark
    torch.save(mixture_weights(1.0), run / "weights.th")
    page = report(run, "--sentences", tmp_path / "heldout.txt")
    assert remarks_in(page) == ["There are no heat maps: this isn't a language model."]


def test_mixtures_by_name():
    weights = {
        **mixture_weights(*[0.1 * n for n in range(12)]),
        **mixture_weights(1.0, 2.0, of="_elmo.scalar_mix_0"),
        "_elmo.scalar_mix_0.gamma": torch.tensor([0.5]),
        # Of no use, and no reason to fail.
        "odd._scalar_mix.scalar_parameters.0": torch.ones(3),
    }
    first, second = mixtures_in(weights)
    # Ten comes after nine, not after one.
    assert first.weights == sorted(first.weights) and len(first.weights) == 12
    assert (first.name, first.factor) == ("token_embedder_elmo", 1.0)
    assert (second.name, second.factor) == ("_elmo", 0.5)
    assert second.weights == pytest.approx([0.2689, 0.7311], abs=1e-4)


def test_curves(run, report):
    page = report(run, "--num-sentences", 0)
    titles = re.findall("<figcaption>(.*?)</figcaption>", page)
    assert titles == ["Perplexity by epoch", "Time by epoch"]
    names = re.findall('<span class="name l.*?>(.*?)</span>', page)
    assert names == ["validation 80", "training 85", "0:02:00"]
    assert "<tr><th scope=row>1</th><td>120</td><td>125</td><td>0:02:00</td></tr>" in page


def test_several_runs(run, report, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    change_config(other, trainer={"num_epochs": 1, "optimizer": {"type": "muon"}})
    (other / "metrics.json").unlink()
    (other / "metrics_epoch_2.json").unlink()
    page = report(run, other)
    names = re.findall('<span class="name l.*?>(.*?)</span>', page)
    assert names == ["A 80", "B 120", "A 0:02:00", "B 0:02:00"]
    for row in (
        "best validation perplexity</th><td>80.0000</td><td>120.0000",
        "trainer.optimizer</th><td>dense_sparse_adam</td><td>–",
        "trainer.optimizer.type</th><td>–</td><td>muon",
    ):
        assert f"<tr><th scope=row>{row}</td></tr>" in page
    assert "model.type" not in page and "hasn&#39;t ended" in page


def test_what_cannot_be_shown(run, report, tmp_path):
    bare, damaged, latin = (tmp_path / name for name in ("bare", "no.tar.gz", "latin.txt"))
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    damaged.write_text("x")
    latin.write_bytes(b"caf\xe9\n")
    for arguments, message in (
        ([tmp_path / "none"], "There is no folder"),
        ([tmp_path], "The config.json of"),
        ([damaged], "not a complete"),
        ([bare], "There is nothing to show"),
        ([run, "--sentences", latin], "is not UTF-8"),
        ([run, "--num-sentences", -1], "can't be negative"),
        ([run, "--cuda-device", 99], "There is no device"),
        ([run, run, "--sentences", latin], "leave out --sentences"),
        ([run, bare], "bare has no metrics_epoch_"),
        ([run] * 27, "At most 26 runs"),
    ):
        assert message in report(*arguments, status=1)
    for content, message in (("{", "is not JSON"), ("[1]", "no JSON object")):
        (run / "metrics_epoch_1.json").write_text(content)
        assert message in report(run, status=1)
    assert not (tmp_path / "report.html").exists()


def test_numbers_are_those_of_metrics_json():
    metrics = {
        "epoch": 4,
        "best_epoch": 2,
        "best_validation_perplexity": 42.3201,
        "best_validation_forward_perplexity": 41.5,
        "best_validation_backward_perplexity": 43.25,
        "best_validation_loss": 3.81,
        "test_perplexity": 0.0,
        "test_num_tokens": 123456,
    }
    sides = "41.5000 given the words before, 43.2500 given the words after"
    assert results_of(TrainingLog({}, [], metrics)) == [
        Fact("epochs", "5", "numbered 0 to 4, as in metrics.json"),
        Fact("best epoch", "2"),
        Fact("best validation perplexity", "42.3201", f"over all words, {sides}"),
        # The trainer's loss is another number than that which the perplexity is made of.
        Fact("best validation loss", "3.7453", "in nats a word: the perplexity's logarithm"),
        Fact("test perplexity", "0.0000"),
        Fact("test num tokens", "123,456"),
    ]


def test_durations():
    totals = ["0:00:10", "0:00:30", None, "0:00:05.5", "1 day, 2:00:00"]
    log = TrainingLog({}, [{"epoch": n, "training_duration": t} for n, t in enumerate(totals)])
    found = log.epoch_durations
    assert found[:2] == [10, 20] and math.isnan(found[2]) and found[3:] == [5.5, 93594.5]


def test_sentences_of_middle_length_come_first():
    words = "one two three four five six".split()
    others = [["short"], ["long"] * 201]
    assert worth_showing([*others, words, [*words, "7"]], 3) == [words, [*words, "7"], ["short"]]
