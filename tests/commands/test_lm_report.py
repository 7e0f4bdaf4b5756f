import base64
import json
import math
import re
import shutil
import sys
import tarfile

import pytest
import torch
from allennlp.commands import main
from allennlp.modules.scalar_mix import ScalarMix
from tensorboardX import SummaryWriter

import transformer_elmo.commands.lm_report  # noqa: F401
from tests.small_lm import random_sentences
from transformer_elmo.commands import charts
from transformer_elmo.commands.lm_report import learned_mixtures
from transformer_elmo.commands.training_log import Point, read_events, read_training_log

PNG = b"\x89PNG\r\n"


@pytest.fixture
def run(lm_archive, tmp_path):
    """The folder of a training run of three epochs of 100 steps."""
    folder = tmp_path / "run"
    (folder / "log").mkdir(parents=True)
    shutil.copy(lm_archive, folder / "model.tar.gz")
    config = json.loads((lm_archive.parent / "config.json").read_text())
    heldout = tmp_path / "heldout.txt"
    sentences = random_sentences(30, seed=41, longest=20)
    heldout.write_text("\n".join(sentences), encoding="utf-8")
    config["validation_data_path"] = str(heldout)
    (folder / "config.json").write_text(json.dumps(config))
    train = SummaryWriter(str(folder / "log" / "train"))
    validation = SummaryWriter(str(folder / "log" / "validation"))
    for step in range(0, 300, 10):
        for name, value in (
            ("train/batch_loss", 5 - step / 100),
            ("train/batch_loss_mov_avg", 5 - step / 120),
            ("train/batch_perplexity", 150 - step / 3),
            ("learning_rate/a.weight", 0.001 * step),
            ("learning_rate/frozen.weight", 0.0),
        ):
            train.add_scalar(name, value, step + 1, walltime=1000.0 + step)
    for epoch in range(3):
        metrics = {
            "epoch": epoch,
            "best_epoch": epoch,
            "training_duration": f"0:0{epoch}:00.1",
            "training_perplexity": 150.0 - 40 * epoch,
            "validation_perplexity": 160.0 - 40 * epoch,
            "validation_forward_perplexity": 170.0 - 40 * epoch,
            "validation_backward_perplexity": 150.0 - 40 * epoch,
            "best_validation_perplexity": 160.0 - 40 * epoch,
        }
        (folder / f"metrics_epoch_{epoch}.json").write_text(json.dumps(metrics))
        walltime = 1095.0 + 100 * epoch
        for name in ("loss", "perplexity"):
            validation.add_scalar(f"validation/{name}", 4 - epoch, epoch + 1, walltime=walltime)
    train.close()
    validation.close()
    return folder


@pytest.fixture
def report(monkeypatch):
    """`allennlp lm-report`, but for its search for plugins."""
    monkeypatch.setattr("allennlp.commands.import_plugins", lambda: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["allennlp", "lm-report", *map(str, arguments)])
        main()

    return run


def test_language_model(run, report, tmp_path, capsys):
    output = tmp_path / "report.html"
    report(run, "-o", output, "--png", "--num-sentences", "2")
    names = ["perplexity", "loss", "loss_by_step", "perplexity_by_step", "speed"]
    names += ["learning_rate", "sentence_1", "sentence_2"]
    pngs = [tmp_path / f"report.{name}.png" for name in names]
    assert capsys.readouterr().out.split() == [str(path) for path in (output, *pngs)]
    page = output.read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(picture) for picture in pictures] == [p.read_bytes() for p in pngs]
    assert all(path.read_bytes().startswith(PNG) for path in pngs)
    # One file, and nothing from elsewhere.
    assert set(re.findall(r'(?:src|href)="(.{0,10})', page)) == {"data:image"}
    assert "bidirectional_language_model_transformer" in page
    assert "&lt;S&gt;" in page and "<S>" not in page
    assert "80.0000" in page and ">0:02:00<" in page

    with pytest.raises(SystemExit, match=r"report\.html exists\. Give --force"):
        report(run, "-o", output)
    report(run, "-o", output, "--force", "--num-sentences", "0")
    assert "Sentence 1" not in output.read_text(encoding="utf-8")


def test_default_output_and_sentences_of_ones_own(run, report, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("unheard-of cat\n")
    report(run, "--sentences", text)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "&lt;S&gt; unheard-of cat &lt;/S&gt;" in page and "Sentence 2" not in page


def test_long_sentences_and_strange_words(run, report, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text(
        "the cat " * 3000 + "\n<script> $x_1^2 $$ \\frac & שלום 東京\n", encoding="utf-8"
    )
    report(run, "-o", tmp_path / "report.html", "--sentences", text)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "(the first 200 of 6002 words)" in page and page.count("the cat") < 200
    assert "&lt;script&gt; $x_1^2 $$ \\frac &amp; שלום 東京" in page and "<script" not in page


def ticks(figure):
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    return [tick.get_text() for tick in axes.get_xticklabels() if low <= tick._x <= high]


def test_curves_of_one_epoch_and_of_no_numbers():
    one = charts.curves({"training": [Point(1, 5.0, 0.0)]}, "epoch", "loss", best=1)
    assert ticks(one) == ["1"]
    points = [Point(1, math.inf, 0.0), Point(2, 9.0, 0.0), Point(3, 0.0, 0.0), Point(4, 8.0, 0.0)]
    figure = charts.curves({"training": points}, "epoch", "perplexity", log=True)
    assert figure.axes[0].lines[0].get_xdata().tolist() == [2, 4]
    flat = charts.curves({"speed": points[1::2]}, "step", "tokens", from_zero=True)
    assert flat.axes[0].get_ylim() == pytest.approx((0, 9.9))


def test_few_steps_are_not_blamed_on_the_config(run, report, tmp_path):
    shutil.rmtree(run / "log")
    with SummaryWriter(str(run / "log" / "train")) as writer:
        writer.add_scalar("train/batch_loss", 5.0, 1)
    report(run, "-o", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "has logged too few of them" in page and "train with the callback" not in page


def test_log(run):
    log = read_training_log(run)
    assert [epoch["epoch"] for epoch in log.epochs] == [0, 1, 2] and log.best_epoch == 3
    losses = log.scalars["train/batch_loss"]
    assert [point.step for point in losses] == list(range(1, 300, 10))
    assert losses[-1].value == pytest.approx(2.1)
    # A file that is still being written ends anywhere.
    (path,) = (run / "log" / "train").iterdir()
    whole = list(read_events(path))
    path.write_bytes(path.read_bytes()[:-5])
    assert list(read_events(path)) == whole[:-1]


def test_a_run_that_has_just_begun(run, report, tmp_path):
    shutil.rmtree(run / "log")
    (run / "model.tar.gz").unlink()
    report(run, "-o", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "no curves by step" in page and "no weights in this folder yet" in page
    for number in range(3):
        (run / f"metrics_epoch_{number}.json").unlink()
    with pytest.raises(SystemExit, match="nothing to show"):
        report(run, "-o", tmp_path / "other.html")


def test_downstream_model(run, report, tmp_path):
    mix = ScalarMix(3, initial_scalar_parameters=[1.0, 0.0, -1.0])
    state = {
        f"_text_field_embedder.token_embedder_elmo._scalar_mix.{key}": value
        for key, value in mix.state_dict().items()
    }
    torch.save(state, run / "best.th")
    config = json.loads((run / "config.json").read_text())
    config["model"] = {"type": "simple_tagger"}
    config["trainer"]["validation_metric"] = "+accuracy"
    for number in range(3):
        path = run / f"metrics_epoch_{number}.json"
        metrics = {"training_accuracy": 0.5, "validation_accuracy": 0.1 * number}
        path.write_text(json.dumps({**json.loads(path.read_text()), **metrics}))
    (run / "config.json").write_text(json.dumps(config))
    (run / "model.tar.gz").unlink()
    expected = torch.softmax(torch.tensor([1.0, 0.0, -1.0]), 0).tolist()
    ((name, weights, factor),) = learned_mixtures(run / "best.th")
    assert name == "token_embedder_elmo" and factor == 1.0
    assert weights == pytest.approx(expected)
    report(run, "-o", tmp_path / "report.html", "--png")
    assert (tmp_path / "report.layers.png").read_bytes().startswith(PNG)
    assert (tmp_path / "report.metric.png").read_bytes().startswith(PNG)
    assert "accuracy by epoch" in (tmp_path / "report.html").read_text(encoding="utf-8")
    with tarfile.open(run / "model.tar.gz", "w:gz") as archive:
        archive.add(run / "best.th", "weights.th")
    assert learned_mixtures(run / "model.tar.gz")[0][1] == weights


def test_what_cannot_be_shown(run, report, tmp_path):
    for arguments, message in (
        ([tmp_path / "none"], "There is no folder"),
        ([tmp_path], "has no config.json"),
        ([run, "-o", tmp_path / "none" / "report.html"], "There is no folder"),
        ([run, "--sentences", tmp_path / "none.txt"], "No file matches"),
    ):
        with pytest.raises(SystemExit, match=message) as exit:
            report(*arguments)
        assert "\n" not in exit.value.code
    (run / "metrics_epoch_1.json").write_text("{")
    with pytest.raises(SystemExit, match="is not JSON"):
        report(run)
    assert not (run / "report.html").exists()
