"""`allennlp train` and `find-lr` of language models: trainer, folder and processes."""

import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Union

from allennlp.commands import find_learning_rate, train
from allennlp.common import Params, Registrable
from allennlp.common.meta import META_NAME, Meta
from allennlp.data import Vocabulary
from allennlp.models import archival
from allennlp.training import util as training_util

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.compat.wrong_values import check_config
from transformer_elmo.plugin.patches import note, wrap
from transformer_elmo.plugin.training import folder as run_folder
from transformer_elmo.plugin.training.checkpointer import has_checkpoints
from transformer_elmo.plugin.training.launch import (
    Launch,
    Meeting,
    distributed_section,
    find_launch,
)
from transformer_elmo.plugin.training.stopping import lost_processes_are_named, stopper
from transformer_elmo.plugin.vocabulary import recovered_vocabulary
from transformer_elmo.pretrained.archive import CONFIG, VOCABULARY, trains_language_model


def install() -> None:
    """Wraps the functions."""
    wrap(
        train,
        "train_model",
        _train_model,
        "language models: their trainer; one run at a time in a folder; signals; torchrun",
    )
    wrap(
        training_util,
        "create_serialization_dir",
        _create_serialization_dir,
        "language models: a folder of another config, whose keys that differ are named",
    )
    wrap(
        find_learning_rate,
        "find_learning_rate_model",
        _find_learning_rate_model,
        "language models: the search takes no trainer but AllenNLP's",
    )
    if "from_params" not in vars(train.TrainModel):
        # It inherits its own from here.
        setattr(train.TrainModel, "from_params", classmethod(_train_model_of))  # noqa: B010
        note(
            "allennlp.commands.train.TrainModel.from_params",
            "language models: --recover of an adaptation needs neither the archive that it began "
            "with nor its text, and the vocabulary is that of the weights",
        )


def _train_model(
    stock: Callable[..., Any],
    params: Params,
    serialization_dir: Union[str, os.PathLike],
    recover: bool = False,
    force: bool = False,
    node_rank: int = 0,
    *args: Any,
    **kwargs: Any,
) -> Any:
    is_ours = run_folder.is_ours(params)
    if is_ours:
        run_folder.name_parts(params.params)
    check_config(params.as_dict(quiet=True))
    if not is_ours:
        return stock(params, serialization_dir, recover, force, node_rank, *args, **kwargs)
    launch = find_launch(params.params)
    if launch is not None and node_rank not in (0, launch.node_rank):
        raise ConfigurationError(
            f"--node-rank is {node_rank}, and torchrun says {launch.node_rank}. Leave it out."
        )
    folder = run_folder.of_node(
        Path(serialization_dir), node_rank if launch is None else launch.node_rank
    )
    with stopper.listening(), lost_processes_are_named():
        if launch is not None:
            section = distributed_section(params.params, launch)
            params.params["distributed"] = section
            meeting = Meeting(launch)
            meeting.check_same_folder(str(serialization_dir))
            return _train_launched(
                launch, meeting, section, params, folder, recover, force, *args, **kwargs
            )
        with run_folder.locked(folder, recover):
            # Without a checkpoint there is nothing to go on with, not even a vocabulary.
            goes_on = recover and (force or not run_folder.only_begun(params, folder))
            stopper.has_workers = "distributed" in params
            try:
                return stock(params, str(folder), goes_on, force, node_rank, *args, **kwargs)
            finally:
                stopper.has_workers = False


def _train_launched(
    launch: Launch,
    meeting: Meeting,
    section: Dict[str, Any],
    params: Params,
    folder: Path,
    recover: bool,
    force: bool,
    include_package: Optional[List[str]] = None,
    dry_run: bool = False,
    file_friendly_logging: bool = False,
    return_model: Optional[bool] = None,
) -> None:
    """As AllenNLP's `train_model` with `distributed`, whose workers there are already."""
    include_in_archive = params.params.get("include_in_archive")

    def prepare() -> Dict[str, Any]:
        goes_on = recover and (force or not run_folder.only_begun(params, folder))
        run_folder.prepare(params, folder, goes_on, force)
        params.to_file(str(folder / CONFIG))
        Meta.new().to_file(folder / META_NAME)
        archival.verify_include_in_archive(include_in_archive)
        directory = str(folder / VOCABULARY)
        if goes_on:
            vocab = Vocabulary.from_files(directory)
        else:
            vocab = training_util.make_vocab_from_params(
                params.duplicate(), str(folder), print_statistics=dry_run
            )
        names = {"padding_token": vocab._padding_token, "oov_token": vocab._oov_token}
        return {"type": "from_files", "directory": directory, **names}

    def work() -> None:
        params["vocabulary"] = meeting.prepared(prepare)
        for name in ("evaluation", "include_in_archive", "distributed"):
            params.params.pop(name, None)
        train._train_worker(
            launch.local_rank,
            params,
            str(folder),
            include_package or [],
            dry_run,
            launch.node_rank,
            launch.address,
            launch.port,
            launch.world_size,
            section["cuda_devices"],
            file_friendly_logging,
            include_in_archive,
            Params({k: v for k, v in section.items() if k not in ("cuda_devices", "num_nodes")}),
        )

    if launch.local_rank:
        return work()
    with run_folder.locked(folder, recover):
        work()
        if not dry_run:
            train.archive_model(str(folder), include_in_archive=include_in_archive)


def _train_model_of(cls: Any, params: Params, *args: Any, **kwargs: Any) -> Any:
    folder = kwargs.get("serialization_dir")
    # AllenNLP's calls this once more, for the class that the config means.
    if "vocabulary" not in kwargs and folder and has_checkpoints(Path(folder)):
        params = run_folder.with_what_it_holds(params, Path(folder))
        if trains_language_model(params.as_dict(quiet=True)):
            kwargs["vocabulary"] = recovered_vocabulary(params.pop("vocabulary", {}))
    return Registrable.from_params.__func__(cls, params, *args, **kwargs)  # type: ignore


def _create_serialization_dir(
    stock: Callable[..., None],
    params: Params,
    serialization_dir: Union[str, os.PathLike],
    recover: bool,
    force: bool,
) -> None:
    if run_folder.is_ours(params):
        run_folder.prepare(params, Path(serialization_dir), recover, force)
    else:
        stock(params, serialization_dir, recover, force)


def _find_learning_rate_model(
    stock: Callable[..., None], params: Params, *args: Any, **kwargs: Any
) -> None:
    trainer = params.params.get("trainer")
    if run_folder.is_ours(params) and isinstance(trainer, dict):
        trainer.pop("max_bad_steps", None)
        trainer.pop("checkpointer", None)
        if trainer.get("type") == run_folder.TRAINER:
            del trainer["type"]
    stock(params, *args, **kwargs)
