"""
Archives that stand alone: what a training run leaves opens anywhere, with all that its training
began with gone.
"""

import glob
import io
import json
import logging
import os
import shutil
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

from allennlp.common.checks import ConfigurationError as AllenNLPError
from allennlp.common.meta import META_NAME
from allennlp.data import Vocabulary
from allennlp.models import archival

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import errors_of_disk, written_whole
from transformer_elmo.pretrained.archive import (
    CONFIG,
    VOCABULARY,
    archived_config,
    base_of,
    read_experiment,
    resolved_config,
    small_parts,
    stock_names,
    with_own_sections,
)
from transformer_elmo.pretrained.nested_models import FOLDER

logger = logging.getLogger(__name__)

PathLike = Union[str, "os.PathLike[str]"]

# Weights hardly get smaller; at gzip's usual level that takes three times as long to find out.
LEVEL = 1

ADVICE = "Then archive what the run has left: archive_model of allennlp.models."


def archive_model(
    serialization_dir: PathLike,
    weights: str = archival._DEFAULT_WEIGHTS,
    archive_path: Optional[PathLike] = None,
    include_in_archive: Optional[List[str]] = None,
) -> str:
    """
    AllenNLP's function of this name, for archives that stand alone. In the config, the model's own
    section takes the place of `from_archive` or `from_pretrained_lm` and the path of another
    archive; what token embedders need of their language models goes along. The file is written
    whole or not at all.

    `include_in_archive`: paths relative to `serialization_dir`, with wildcards. Raises
    `RuntimeError` if there are no weights or no config, `ConfigurationError` if the archive can't
    be written.
    """
    run = Path(serialization_dir)
    config_file, weights_file = run / CONFIG, run / weights
    for what, path in (("weights", weights_file), ("config", config_file)):
        if not path.exists():
            raise RuntimeError(f"{what} file '{path}' does not exist, unable to archive model")
    target = Path(archive_path or run)
    if target.is_dir():
        target = target / "model.tar.gz"
    logger.info("archiving weights and vocabulary to %s", target)
    with tempfile.TemporaryDirectory() as name, errors_of_disk(target, ADVICE):
        config, vocabulary, carried = _standing_alone(run, Path(name))
        with (
            written_whole(target, advice=ADVICE) as file,
            tarfile.open(fileobj=file, mode="w:gz", compresslevel=LEVEL) as archive,
        ):
            # What is small comes first: it is read without unpacking the rest.
            text = json.dumps(stock_names(config), indent=2).encode()
            member = tarfile.TarInfo(CONFIG)
            member.size, member.mtime = len(text), int(time.time())
            archive.addfile(member, io.BytesIO(text))
            if carried.is_dir():
                archive.add(carried, arcname=FOLDER)
            archive.add(vocabulary, arcname=VOCABULARY, filter=_without_locks)
            if (run / META_NAME).exists():
                archive.add(run / META_NAME, arcname=META_NAME)
            archive.add(weights_file, arcname=archival._WEIGHTS_NAME)
            if carried.is_dir():
                advice = (
                    "Open %s with --include-package transformer_elmo where no plugin file names it."
                )
                logger.info(advice, target)
            for wanted in include_in_archive or []:
                for found in glob.glob(os.path.join(glob.escape(str(run)), wanted)):
                    archive.add(found, arcname=os.path.relpath(found, run))
    return str(target)


def _standing_alone(run: Path, space: Path) -> Tuple[Dict[str, Any], Path, Path]:
    """The config to archive, and the folders of the vocabulary and of the models it carries."""
    config = with_own_sections(archived_config(run, str(run)), run)
    base = base_of(config)
    if base is None:
        return config, run / VOCABULARY, run / FOLDER
    try:
        whole = resolved_config(run, str(run))
        vocab = vocabulary_of_run(run, str(run), space / FOLDER)
    except (ConfigurationError, AllenNLPError, OSError) as error:
        logger.warning("This archive will open only where %s is: %s", base, error)
        return config, run / VOCABULARY, run / FOLDER
    vocab.save_to_files(str(space / VOCABULARY))
    return {**config, "model": whole["model"]}, space / VOCABULARY, space / FOLDER


def vocabulary_of_run(folder: Path, shown: str, carried: Optional[Path] = None) -> Vocabulary:
    """
    The vocabulary of the model in a run, as `Model.from_archive` makes it: that of the archive that
    it began with, and then the run's own words.

    `folder`: of the run, or where an archive was unpacked to. `shown`: what messages call it.
    `carried`: a folder to copy the language models to that these carry.
    """
    experiment = read_experiment(folder, shown)
    section = experiment.get("vocabulary") or {}
    vocab = Vocabulary.from_files(
        str(folder / VOCABULARY), section.get("padding_token"), section.get("oov_token")
    )
    if carried is not None and (folder / FOLDER).is_dir():
        shutil.copytree(folder / FOLDER, carried, dirs_exist_ok=True)
    base = base_of(experiment)
    if base is None:
        return vocab
    with small_parts(base, shown) as below:
        before = vocabulary_of_run(below, base, carried)
    before.extend_from_vocab(vocab)
    return before


def _without_locks(member: tarfile.TarInfo) -> Optional[tarfile.TarInfo]:
    return None if member.name.endswith("/.lock") else member
