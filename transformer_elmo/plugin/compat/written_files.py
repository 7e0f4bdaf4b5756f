"""What AllenNLP writes when a run begins and when an epoch ends: whole or not at all."""

import os
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from allennlp.common import util as common_util
from allennlp.common.meta import Meta
from allennlp.common.params import Params
from allennlp.data.vocabulary import Vocabulary

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import folder_written_whole, written_whole
from transformer_elmo.plugin.patches import wrap
from transformer_elmo.plugin.runs.checkpoints import ADVICE, has_checkpoints


def install() -> None:
    """Wraps the functions."""
    wrap(Params, "to_file", _through_another, "config.json is written whole or not at all")
    wrap(Meta, "to_file", _through_another, "meta.json is written whole or not at all")
    wrap(common_util, "dump_metrics", _dump_metrics, "metrics are written whole or not at all")
    wrap(
        Vocabulary,
        "save_to_files",
        _save_to_files,
        "vocabularies are written whole; that of weights in the folder isn't exchanged",
    )


def _through_another(
    stock: Callable[..., None], owner: Any, path: Any, *args: Any, **kwargs: Any
) -> None:
    """Has a file written elsewhere and then put in its place."""
    with tempfile.TemporaryDirectory() as space:
        stock(owner, os.path.join(space, "file"), *args, **kwargs)
        content = (Path(space) / "file").read_bytes()
    with written_whole(Path(path)) as file:
        file.write(content)


def _dump_metrics(
    stock: Callable[..., None], file_path: Optional[str], metrics: Dict[str, Any], log: bool = False
) -> None:
    if file_path:
        _through_another(lambda _, path: stock(path, metrics, log=False), None, file_path)
    stock(None, metrics, log)


def _save_to_files(stock: Callable[..., None], vocab: Vocabulary, directory: str) -> None:
    folder = Path(directory)
    if not folder.is_dir() or not any(_files(folder)):
        with folder_written_whole(folder, replace=True) as space:
            stock(vocab, str(space))
            _remove_lock(space)
        return
    with tempfile.TemporaryDirectory() as name:
        space = Path(name)
        stock(vocab, name)
        _remove_lock(space)
        changed = [path for path in _files(space) if not _same(path, folder / path.name)]
        if changed and has_checkpoints(folder.parent):
            raise ConfigurationError(
                f"The config gives another vocabulary than that of the weights in {folder.parent}: "
                f"{_difference(changed[0], folder / changed[0].name)}. Restore it, or begin "
                "another run in another folder."
            )
        for path in changed:
            with written_whole(folder / path.name, advice=ADVICE) as file:
                file.write(path.read_bytes())


def _files(folder: Path) -> List[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _remove_lock(folder: Path) -> None:
    (folder / ".lock").unlink(missing_ok=True)


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _difference(now: Path, before: Path) -> str:
    if not before.is_file():
        return f"there was no {before.name}"
    texts = [path.read_text(encoding="utf-8") for path in (now, before)]
    lines = [text.removesuffix("\n").split("\n") for text in texts]
    for number, (new, old) in enumerate(zip(*lines), start=1):
        if new != old:
            return f"line {number} of {before.name} is {new!r}, and was {old!r}"
    return f"{before.name} has {len(lines[0])} lines, and had {len(lines[1])}"
