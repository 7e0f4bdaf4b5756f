import copy
import io
import json
import tarfile
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import pytest
import torch
from allennlp.data import Vocabulary

WORDS = ["</S>", "<S>", "@@UNKNOWN@@", "the", "rain", "falls", "over", "grey", "hills", "and"]

GOLDEN = Path(__file__).parent / "golden"
# As people wrote them, what they are in AllenNLP 2, and what is logged.
WHOLE = {
    name: json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("0.7", "0.8", "0.9", "tagger", "2.x")
}
CONFIGS = {name: case["old"] for name, case in WHOLE.items() if name != "2.x"}


@pytest.fixture
def old_configs() -> Dict[str, Dict[str, Any]]:
    return copy.deepcopy(CONFIGS)


@pytest.fixture
def vocabulary(tmp_path) -> Vocabulary:
    directory = tmp_path / "words"
    directory.mkdir()
    (directory / "tokens.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (directory / "non_padded_namespaces.txt").write_text("*labels\n*tags\n", encoding="utf-8")
    return Vocabulary.from_files(directory)


@pytest.fixture
def write_archive(tmp_path) -> Callable[..., Any]:
    """Writes an archive as AllenNLP 0.x did: no meta file, weights in torch's first format."""

    def write(
        name: str,
        config: Dict[str, Any],
        weights: Dict[str, torch.Tensor],
        vocabulary: Vocabulary,
        files: Optional[Dict[str, str]] = None,
    ) -> Any:
        folder = tmp_path / f"{name}-vocabulary"
        vocabulary.save_to_files(str(folder))
        archive = tmp_path / f"{name}.tar.gz"
        saved = io.BytesIO()
        torch.save(weights, saved, _use_new_zipfile_serialization=False)
        with tarfile.open(archive, "w:gz") as tar:
            _add(tar, "config.json", json.dumps(config).encode())
            _add(tar, "weights.th", saved.getvalue())
            tar.add(folder, arcname="vocabulary")
            for key, file in (files or {}).items():
                tar.add(file, arcname=f"fta/{key}")
            if files:
                _add(tar, "files_to_archive.json", json.dumps(files).encode())
        return archive

    return write


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
