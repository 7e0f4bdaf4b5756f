"""The subcommands are found by AllenNLP's own means."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_subcommands_through_the_plugins_file_in_the_home_folder(lm_archive, tmp_path):
    home = tmp_path / "home"
    (home / ".allennlp").mkdir(parents=True)
    (home / ".allennlp" / "plugins").write_text("transformer_elmo\n")
    (tmp_path / "text.txt").write_text("the cat sat\n\non the mat\n")
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "allennlp", "embed", lm_archive, "text.txt", "out.npz", "--average"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["offsets"].tolist() == [0, 3, 3, 6]
        assert arrays["vectors"].shape[0] == 6
