import copy
import json
import tarfile
from pathlib import Path

import pytest
import torch
from allennlp.data import Vocabulary

WORDS = ["</S>", "<S>", "@@UNKNOWN@@", "the", "rain", "falls", "over", "grey", "hills", "and"]

GOLDEN = Path(__file__).parent / "golden"
_FILES = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(GOLDEN.iterdir())
}
# Configs as people wrote them, what they are in AllenNLP 2, and what is logged.
WHOLE = {name: content for name, content in _FILES.items() if isinstance(content, dict)}
CASES = {name: content for name, content in _FILES.items() if isinstance(content, list)}


@pytest.fixture
def old_configs():
    return copy.deepcopy({name: case["old"] for name, case in WHOLE.items() if name != "2.x"})


@pytest.fixture
def vocabulary(tmp_path):
    directory = tmp_path / "words"
    directory.mkdir()
    (directory / "tokens.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (directory / "non_padded_namespaces.txt").write_text("*labels\n*tags\n", encoding="utf-8")
    return Vocabulary.from_files(directory)


@pytest.fixture
def write_archive(tmp_path):
    """Writes an archive as AllenNLP 0.x did: no meta file, weights in torch's first format."""

    def write(name, config, weights, vocabulary, files=None):
        folder = tmp_path / f"{name}-archived"
        vocabulary.save_to_files(str(folder / "vocabulary"))
        (folder / "config.json").write_text(json.dumps(config))
        torch.save(weights, folder / "weights.th", _use_new_zipfile_serialization=False)
        archive = tmp_path / f"{name}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for key, file in (files or {}).items():
                tar.add(file, arcname=f"fta/{key}")
            if files:
                (folder / "files_to_archive.json").write_text(json.dumps(files))
            for path in folder.iterdir():
                tar.add(path, arcname=path.name)
        return archive

    return write
