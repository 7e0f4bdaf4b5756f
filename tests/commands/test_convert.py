"""Archives that allennlp-models evaluates without this package."""

import json
import subprocess
import sys

import pytest
from allennlp.commands.evaluate import evaluate_from_archive

from tests.small_lm import experiment_config


def test_a_config(command, tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(experiment_config()))
    assert 'model.type = "bidirectional-language-model"' in command("convert", old, new, "--stock")
    assert "batch_sampler" in json.loads(new.read_text())["data_loader"]


WITHOUT = """
import sys
sys.modules["transformer_elmo"] = None
import allennlp_models.lm
from allennlp.commands.evaluate import evaluate_from_archive
print(evaluate_from_archive(*sys.argv[1:], cuda_device=-1)["loss"])
"""


@pytest.mark.slow
def test_allennlp_models_evaluates_it_alone(command, lm_archive, tmp_path):
    pytest.importorskip("allennlp_models.lm")
    # Of one length: allennlp-models' losses depend on padding.
    (tmp_path / "text.txt").write_text("the dog ran\nbirds flew on\n")
    archive = tmp_path / "stock.tar.gz"
    command("convert", lm_archive, archive, "--stock")
    text = str(tmp_path / "text.txt")
    python = [sys.executable, "-c", WITHOUT, str(archive), text]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = evaluate_from_archive(str(lm_archive), text, cuda_device=-1)["loss"]
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(expected, rel=1e-5)
