"""`allennlp lm-report`, and what is in the report."""

import json
import math
import re
import shutil
import sys
import tarfile
from html import escape

import pytest
import torch
from allennlp.commands import main
from allennlp.modules.scalar_mix import ScalarMix

from tests.small_lm import random_sentences
from transformer_elmo import TransformerElmo
from transformer_elmo.commands import cli
from transformer_elmo.commands.report import mixtures_in
from transformer_elmo.commands.report.facts import (
    Fact,
    TrainingLog,
    config_of,
    results_of,
)
from transformer_elmo.commands.report.sentences import worth_showing
from transformer_elmo.pretrained.weights import read_weights


@pytest.fixture
def run(lm_archive, tmp_path):
    """The folder of a training run of three epochs."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(lm_archive, folder / "model.tar.gz")
    config = json.loads((lm_archive.parent / "config.json").read_text())
    heldout = tmp_path / "heldout.txt"
    sentences = random_sentences(30, seed=41, longest=20)
    heldout.write_text("\n".join(sentences), encoding="utf-8")
    config["validation_data_path"] = str(heldout)
    (folder / "config.json").write_text(json.dumps(config))
    for epoch in range(3):
        metrics = {
            "epoch": epoch,
            "best_epoch": epoch,
            "training_duration": f"0:0{2 * epoch + 2}:00.1",
            "validation_perplexity": 160.0 - 40 * epoch,
            "best_validation_perplexity": 160.0 - 40 * epoch,
            "best_validation_forward_perplexity": 170.0 - 40 * epoch,
            "best_validation_backward_perplexity": 150.0 - 40 * epoch,
            "best_validation_loss": math.log(160.0 - 40 * epoch),
        }
        (folder / f"metrics_epoch_{epoch}.json").write_text(json.dumps(metrics))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def report(monkeypatch):
    """`allennlp lm-report`, but for its search for plugins."""
    monkeypatch.setattr("allennlp.commands.import_plugins", lambda: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["allennlp", "lm-report", *map(str, arguments)])
        main()

    return run


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def remarks_in(page):
    return re.findall(r'<p class="remark">(.*?)</p>', page)


def words_in(page):
    """Those of the sentences, and not those that would be likelier."""
    return re.findall(r'<span class="c"><bdi[^>]*>(.*?)</bdi>', page)


def written(run, tmp_path, *options):
    output = tmp_path / "report.html"
    assert cli.main(["report", str(run), "-o", str(output), "--force", *map(str, options)]) == 0
    return output.read_text(encoding="utf-8")


def test_language_model(run, report, tmp_path, capsys):
    output = tmp_path / "report.html"
    report(run, "-o", output, "--num-sentences", "2")
    assert capsys.readouterr().out.split() == [str(output)]
    page = output.read_text(encoding="utf-8")
    # One file, and nothing from elsewhere.
    assert not re.findall(r"(?:src|href)=|url\(|<script|@import", page)
    assert "bidirectional_language_model_transformer" in page
    assert "&lt;S&gt;" in page and "<S>" not in page
    assert page.count("<h3>Sentence") == 2 and not remarks_in(page)
    assert ">80.0000 <" in page and f">{math.log(80):.4f} <" in page and ">0:06:00<" in page

    with pytest.raises(SystemExit, match=r"report\.html exists\. Give --force"):
        report(run, "-o", output)
    report(run, "-o", output, "--force", "--num-sentences", "0")
    page = output.read_text(encoding="utf-8")
    assert "Sentence 1" not in page and not remarks_in(page)
    assert [path.name for path in tmp_path.glob("*report*")] == ["report.html"]


def test_sentences_of_ones_own_with_the_models_scores(run, report, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("\nunheard-of cat\n1 <S> @@PADDING@@\n2\nthe dog\n")
    report(run, "--sentences", text)
    page = (run / "report.html").read_text(encoding="utf-8")
    # As they come, whatever they are.
    assert page.count("<h3>Sentence") == 3 and not remarks_in(page)
    shown = " ".join(words_in(page)).replace("&lt;S&gt;", "^").replace("&lt;/S&gt;", "$")
    assert shown == "^ unheard-of cat $ ^ 1 ^ @@PADDING@@ $ ^ 2 $"
    assert f"<code>{text}</code>" in page
    elmo = TransformerElmo.from_archive(run / "model.tar.gz", device="cpu")
    (scores,) = elmo.score(["unheard-of cat"], top_k=5)
    assert f"perplexity {scores.perplexity:,.1f}" in page
    for view in (scores.forward, scores.backward):
        for log_prob in view.log_probs:
            assert log_prob is None or f">{-log_prob / math.log(2):.1f}</span>" in page
    assert all(f"rank {rank:,}<" in page for rank in scores.forward.ranks if rank is not None)
    assert all(escape(word) in page for word, _ in scores.backward.top[1])


def test_an_archive_alone(run, report, tmp_path, capsys):
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.move(run / "model.tar.gz", alone / "model.tar.gz")
    text = tmp_path / "mine.txt"
    text.write_text("the cat sat\n")
    report(alone / "model.tar.gz", "--sentences", text)
    assert capsys.readouterr().out.split() == [str(alone / "report.html")]
    page = (alone / "report.html").read_text(encoding="utf-8")
    assert "<h1>Model alone/model.tar.gz</h1>" in page and "<dt>epochs" not in page
    assert "model.contextualizer.num_layers" in page and "sat" in words_in(page)

    (alone / "config.json").write_text("{}")
    with tarfile.open(alone / "other.tar.gz", "w:gz") as archive:
        archive.add(alone / "config.json", "something.json")
    for name, message in (
        ("other.tar.gz", "The config.json of"),
        ("report.html", "not a complete"),
    ):
        with pytest.raises(SystemExit, match=message) as exit:
            report(alone / name, "-o", tmp_path / "x.html")
        assert "\n" not in exit.value.code


def test_a_language_model_that_was_trained_further(run, lm_archive, tmp_path):
    """Its config names the archive that it began with, and not what it is."""
    change_config(run, model={"type": "from_archive", "archive_file": str(lm_archive)})
    (run / "model.tar.gz").unlink()
    for name in ("vocabulary", "weights.th"):
        where = run / name.replace("weights", "best")
        source = lm_archive.parent / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, where)
    page = written(run, tmp_path)
    assert page.count("<h3>Sentence") == 3 and not remarks_in(page)
    assert f"<dd>{lm_archive}</dd>" in page

    change_config(run, model={"type": "from_archive", "archive_file": "/gone/model.tar.gz"})
    (remark,) = remarks_in(written(run, tmp_path))
    assert remark.startswith("There are no heat maps, because the language model can&#39;t be")
    assert "/gone/model.tar.gz" in remark


def test_what_is_missing_is_said(run, report, tmp_path, caplog):
    change_config(run, validation_data_path=str(tmp_path / "gone.txt"))
    (remark,) = remarks_in(written(run, tmp_path))
    assert "the validation data isn&#39;t here: No file matches" in remark
    assert "the validation data isn't here" in caplog.text
    change_config(run, validation_data_path=None)
    (remark,) = remarks_in(written(run, tmp_path))
    assert "the config has no validation data. Name a text with --sentences" in remark
    (tmp_path / "empty.txt").write_text("\n \n")
    (remark,) = remarks_in(written(run, tmp_path, "--sentences", tmp_path / "empty.txt"))
    assert "there is no sentence in" in remark
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9\n")
    change_config(run, validation_data_path=str(latin))
    (remark,) = remarks_in(written(run, tmp_path))
    assert "the validation data can&#39;t be read" in remark
    with pytest.raises(SystemExit, match="is not UTF-8"):
        report(run, "--sentences", latin)

    (run / "model.tar.gz").write_bytes(b"damaged")
    change_config(run, validation_data_path=str(tmp_path / "heldout.txt"))
    (remark,) = remarks_in(written(run, tmp_path))
    assert "the language model can&#39;t be opened" in remark and "complete .tar.gz" in remark
    change_config(run, model={"type": "simple_tagger"})
    (remark,) = remarks_in(written(run, tmp_path))
    assert remark.startswith("The weights can&#39;t be read:")


def test_a_run_that_has_just_begun(run, report, tmp_path):
    (run / "model.tar.gz").unlink()
    (run / "metrics.json").unlink()
    page = written(run, tmp_path)
    ended, weights = remarks_in(page)
    assert "training hasn&#39;t ended: these are the numbers after epoch 2" in ended
    assert "There are no weights yet" in weights and ">3 <" in page
    for number in range(3):
        (run / f"metrics_epoch_{number}.json").unlink()
    with pytest.raises(SystemExit, match="nothing to show"):
        report(run, "-o", tmp_path / "other.html")


def mixture_weights(*parameters, name="elmo"):
    mix = ScalarMix(len(parameters), initial_scalar_parameters=list(parameters))
    return {
        f"_text_field_embedder.token_embedder_{name}._scalar_mix.{key}": value
        for key, value in mix.state_dict().items()
    }


def test_downstream_model(run, tmp_path):
    torch.save(mixture_weights(1.0, 0.0, -1.0), run / "best.th")
    change_config(run, model={"type": "simple_tagger"})
    (run / "model.tar.gz").unlink()
    (run / "metrics.json").write_text(
        json.dumps({"epoch": 0, "best_validation_accuracy": 0.9, "test_accuracy": 0.8})
    )
    expected = torch.softmax(torch.tensor([1.0, 0.0, -1.0]), 0).tolist()
    (mixture,) = mixtures_in(read_weights(run / "best.th"))
    assert mixture.name == "token_embedder_elmo" and mixture.factor == 1.0
    assert mixture.weights == pytest.approx(expected)
    page = written(run, tmp_path)
    names = re.findall(r'<th scope="row">(.*?)</th><td class="num">(.*?)</td>', page)
    assert names == [(name, f"{w:.3f}") for name, w in zip(("words", "layer 1", "top"), expected)]
    assert not remarks_in(page) and "test accuracy" in page and ">0.8000<" in page

    with tarfile.open(run / "model.tar.gz", "w:gz") as archive:
        archive.add(run / "best.th", "weights.th")
    (run / "best.th").unlink()
    assert re.findall(r'<th scope="row">(.*?)</th><td class="num">(.*?)</td>',
                      written(run, tmp_path)) == names  # fmt: skip
    (tmp_path / "mine.txt").write_text("the cat\n")
    page = written(run, tmp_path, "--sentences", tmp_path / "mine.txt")
    assert remarks_in(page) == ["There are no heat maps: this isn&#39;t a language model."]
    torch.save({"_encoder.weight": torch.ones(2)}, run / "weights.th")
    (remark,) = remarks_in(written(run, tmp_path))
    assert "has no mixture" in remark


def test_mixtures_by_name():
    weights = {
        **mixture_weights(*[0.1 * n for n in range(12)]),
        "_elmo.scalar_mix_0.gamma": torch.tensor([0.5]),
        "_elmo.scalar_mix_0.scalar_parameters.1": torch.tensor([2.0]),
        "_elmo.scalar_mix_0.scalar_parameters.0": torch.tensor([1.0]),
        # Of no use, and no reason to fail.
        "odd._scalar_mix.scalar_parameters.0": torch.ones(3),
    }
    first, second = mixtures_in(weights)
    # Ten comes after nine, not after one.
    assert first.weights == sorted(first.weights) and len(first.weights) == 12
    assert (second.name, second.factor) == ("_elmo", 0.5)
    assert second.weights == pytest.approx([0.2689, 0.7311], abs=1e-4)


def test_curves_of_one_run_and_several(run, report, tmp_path):
    page = written(run, tmp_path, "--num-sentences", 0)
    titles = re.findall("<figcaption>(.*?)</figcaption>", page)
    assert titles == ["Perplexity by epoch", "Time by epoch"]
    assert re.findall('<span class="name l.*?>(.*?)</span>', page) == ["validation 80", "0:02:00"]
    assert "<tr><th scope=row>1</th><td>120</td><td>0:02:00</td></tr>" in page

    other = tmp_path / "other"
    shutil.copytree(run, other)
    change_config(other, trainer={"num_epochs": 1, "optimizer": {"type": "muon"}})
    (other / "metrics.json").unlink()
    (other / "metrics_epoch_2.json").unlink()
    report(run, other, "-o", tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    names = re.findall('<span class="name l.*?>(.*?)</span>', page)
    assert names[:2] == ["A 80", "B 120"] and page.count("<svg") == 2
    for row in (
        "best validation perplexity</th><td>80.0000</td><td>120.0000",
        "trainer.optimizer</th><td>dense_sparse_adam</td><td>–",
        "trainer.optimizer.type</th><td>–</td><td>muon",
    ):
        assert f"<tr><th scope=row>{row}</td></tr>" in page
    assert "model.type" not in page and "hasn&#39;t ended" in page
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    for arguments, message in (
        ([run, other, "--sentences", tmp_path / "heldout.txt"], "leave out --sentences"),
        ([run, bare], "bare has no metrics_epoch_"),
        ([run] * 27, "At most 26 runs"),
    ):
        with pytest.raises(SystemExit, match=message):
            report(*arguments, "-o", tmp_path / "no.html")


def test_what_cannot_be_shown(run, report, tmp_path):
    for arguments, message in (
        ([tmp_path / "none"], "There is no folder"),
        ([tmp_path], "The config.json of"),
        ([run, "-o", tmp_path / "none" / "report.html"], "There is no folder"),
        ([run, "-o", tmp_path], "is a folder"),
        ([run, "--sentences", tmp_path / "none.txt"], "No file matches"),
        ([run, "--num-sentences", -1], "can't be negative"),
        ([run, "--cuda-device", 99], "There is no device"),
    ):
        with pytest.raises(SystemExit, match=message) as exit:
            report(*arguments)
        assert "\n" not in exit.value.code
    (run / "metrics_epoch_1.json").write_text("{")
    with pytest.raises(SystemExit, match="is not JSON"):
        report(run)
    (run / "metrics_epoch_1.json").write_text("[1]")
    with pytest.raises(SystemExit, match="no JSON object"):
        report(run)
    assert not (run / "report.html").exists()


def facts_of(**metrics):
    return {fact.name: (fact.value, fact.note) for fact in results_of(TrainingLog({}, [], metrics))}


def test_numbers_are_those_of_metrics_json():
    facts = facts_of(
        epoch=4,
        best_epoch=2,
        training_duration="1 day, 2:03:04.567",
        best_validation_perplexity=42.3201,
        best_validation_forward_perplexity=41.5,
        best_validation_backward_perplexity=43.25,
        best_validation_loss=3.81,
        best_validation_x=True,
        test_loss=3.7,
        test_perplexity=math.exp(3.7),
        test_num_tokens=123456,
        validation_perplexity=50.0,
    )
    assert facts["epochs"] == ("5", "numbered 0 to 4, as in metrics.json")
    assert facts["best epoch"] == ("2", "")
    assert facts["best validation perplexity"] == (
        "42.3201",
        "over all words, 41.5000 given the words before, 43.2500 given the words after",
    )
    # The trainer's loss is another number than that which the perplexity is made of.
    assert facts["best validation loss"][0] == f"{math.log(42.3201):.4f}"
    assert "logarithm" in facts["best validation loss"][1]
    assert facts["test loss"][0] == "3.7000" and facts["test num tokens"] == ("123,456", "")
    assert len(facts) == 7
    facts = facts_of(best_validation_perplexity=math.inf, test_perplexity=0.0, epoch=0)
    assert facts["best validation perplexity"][0] == facts["best validation loss"][0] == "inf"
    assert facts["test perplexity"] == ("0.0000", "")
    assert facts["epochs"] == ("1", "number 0, as in metrics.json")


def test_durations():
    totals = ["0:00:10", "0:00:30", None, "0:00:05.5", "1 day, 2:00:00"]
    log = TrainingLog({}, [{"epoch": n, "training_duration": t} for n, t in enumerate(totals)])
    found = log.epoch_durations
    assert found[:2] == [10, 20] and math.isnan(found[2]) and found[3:] == [5.5, 93594.5]
    assert results_of(log) == [
        Fact("epochs", "5", "numbered 0 to 4, as in metrics.json"),
        Fact("duration", "1 day, 2:00:30"),
    ]


def test_essentials_of_a_config():
    config = {
        "model": {
            "type": "simple_tagger",
            "text_field_embedder": {
                "token_embedders": {"elmo": {"archive_file": "a.tar.gz"}, "x": {"type": "empty"}}
            },
        },
        "trainer": {"optimizer": {"type": "adam", "näme": [1]}},
        "validation_data_path": None,
        "data_loader": [],
        "other": 1,
    }
    assert [(name, value) for name, value, _ in config_of(config)] == [
        ("model.type", "simple_tagger"),
        ("model.text_field_embedder.token_embedders.elmo.archive_file", "a.tar.gz"),
        ("trainer.optimizer.type", "adam"),
        ("trainer.optimizer.näme", "[1]"),
    ]


def test_sentences_of_middle_length_come_first():
    words = "one two three four five six".split()
    others = [["short"], ["long"] * 201]
    assert worth_showing([*others, words, [*words, "7"]], 3) == [words, [*words, "7"], ["short"]]
    assert worth_showing([], 3) == []


def test_a_model_folder(lm_archive, report, tmp_path):
    folder = tmp_path / "folder"
    TransformerElmo.open(lm_archive).save(folder)
    text = tmp_path / "mine.txt"
    text.write_text("the cat sat\n")
    report(folder, "--sentences", text, "-o", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "sat" in words_in(page) and not remarks_in(page)
    report(folder, "-o", tmp_path / "report.html", "--force")
    (remark,) = remarks_in((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Name one with --sentences" in remark
    bare = tmp_path / "bare"
    TransformerElmo.open(lm_archive).save(bare, with_softmax=False)
    report(bare, "--sentences", text, "-o", tmp_path / "report.html", "--force")
    (remark,) = remarks_in((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "no softmax" in remark
