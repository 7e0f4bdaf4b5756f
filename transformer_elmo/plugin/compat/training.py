"""`allennlp train` and `find-lr` of language models: trainer, folder and processes."""

import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Union

import torch.multiprocessing as mp
from allennlp.commands import find_learning_rate, train
from allennlp.common import Params
from allennlp.common import logging as common_logging
from allennlp.common.checks import check_for_gpu
from allennlp.common.meta import META_NAME, Meta
from allennlp.common.util import find_open_port
from allennlp.models import Model, archival
from allennlp.training import util as training_util

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.archiving import archive_model
from transformer_elmo.plugin.compat.configs import with_token_names
from transformer_elmo.plugin.compat.shown_errors import errors_are_ours
from transformer_elmo.plugin.compat.wrong_values import check_config
from transformer_elmo.plugin.patches import wrap
from transformer_elmo.plugin.training import folder as run_folder
from transformer_elmo.plugin.training.launch import (
    Launch,
    Meeting,
    distributed_section,
    find_launch,
)
from transformer_elmo.plugin.training.stopping import lost_processes_are_named, stopper
from transformer_elmo.plugin.vocabulary import CheckedVocabulary
from transformer_elmo.pretrained.archive import (
    CONFIG,
    VOCABULARY,
    contains_language_model,
    own_names,
    trains_language_model,
)


def install() -> None:
    """Wraps the functions."""
    wrap(
        train,
        "train_model",
        _train_model,
        "language models: their trainer; one run at a time in a folder; signals; torchrun",
    )
    wrap(
        find_learning_rate,
        "find_learning_rate_model",
        _find_learning_rate_model,
        "language models: the search takes no trainer but AllenNLP's",
    )


def _train_model(
    stock: Callable[..., Any],
    params: Params,
    serialization_dir: Union[str, os.PathLike],
    *args: Any,
    **kwargs: Any,
) -> Any:
    config = params.as_dict(quiet=True)
    if not run_folder.is_ours(params):
        if contains_language_model(config):
            params = Params(with_token_names(own_names(config)))
            check_config(params.as_dict(quiet=True))
        return stock(params, serialization_dir, *args, **kwargs)
    with errors_are_ours():
        return _train_ours(params, serialization_dir, *args, **kwargs)


def _train_ours(
    params: Params,
    serialization_dir: Union[str, os.PathLike],
    recover: bool = False,
    force: bool = False,
    node_rank: int = 0,
    include_package: Optional[List[str]] = None,
    dry_run: bool = False,
    file_friendly_logging: bool = False,
    return_model: Optional[bool] = None,
) -> Optional[Model]:
    """AllenNLP's `train_model`; where torchrun has started processes, each is a worker of it."""
    params = Params(own_names(params.as_dict(quiet=True)))
    run_folder.name_parts(params.params)
    check_config(params.as_dict(quiet=True))
    common_logging.FILE_FRIENDLY_LOGGING = file_friendly_logging
    launch = find_launch(params.params)
    if launch is not None:
        if node_rank not in (0, launch.node_rank):
            raise ConfigurationError(
                f"--node-rank is {node_rank}, and torchrun says {launch.node_rank}. Leave it out."
            )
        node_rank = launch.node_rank
    folder = run_folder.of_node(Path(serialization_dir), node_rank)
    options = {
        "include_package": include_package or [],
        "dry_run": dry_run,
        "file_friendly_logging": file_friendly_logging,
        "include_in_archive": params.params.get("include_in_archive"),
    }
    run = _Run(params, folder, recover, force, node_rank, options)
    with stopper.listening(), lost_processes_are_named():
        if launch is not None:
            run.launched(launch)
            return None
        with run_folder.locked(run.folder, recover):
            model = run.spawned() if "distributed" in params else run.in_this_process()
            run.archive()
    if return_model and model is None and not dry_run:
        return Model.load(params, run.folder)
    return None if return_model is False or dry_run else model


@dataclass
class _Run:
    """A training run in a folder that is its own."""

    params: Params
    folder: Path
    recover: bool
    force: bool
    node_rank: int
    # Of AllenNLP's worker.
    options: Dict[str, Any]

    def begin(self) -> bool:
        """Makes the folder this run's. Returns whether a run goes on there."""
        goes_on = run_folder.prepare(self.params, self.folder, self.recover, self.force)
        self.params.to_file(str(self.folder / CONFIG))
        Meta.new().to_file(self.folder / META_NAME)
        archival.verify_include_in_archive(self.options["include_in_archive"])
        return goes_on

    def archive(self) -> None:
        """What a run leaves behind."""
        if not self.options["dry_run"]:
            archive_model(self.folder, include_in_archive=self.options["include_in_archive"])

    def drop_what_is_done(self) -> None:
        """What the workers don't know."""
        for name in ("evaluation", "include_in_archive", "distributed"):
            self.params.params.pop(name, None)

    def in_this_process(self) -> Optional[Model]:
        """Trains, and returns the model."""
        goes_on = self.begin()
        self.drop_what_is_done()
        if goes_on:
            self.params = run_folder.with_what_it_holds(self.params, self.folder)
            if trains_language_model(self.params.as_dict(quiet=True)):
                given = self.params.params.pop("vocabulary", {})
                self.params["vocabulary"] = {"type": "lm_of_run", "given": given}
        return train._train_worker(0, self.params, str(self.folder), **self.options)

    def vocabulary(self, logged: bool = False) -> Dict[str, Any]:
        """The section for workers: the vocabulary in the run's folder."""
        directory = str(self.folder / VOCABULARY)
        goes_on = self.begin()
        if logged:
            common_logging.prepare_global_logging(str(self.folder), rank=0, world_size=1)
        if goes_on:
            vocab = CheckedVocabulary.from_files(directory)
        else:
            vocab = training_util.make_vocab_from_params(
                self.params.duplicate(), str(self.folder), print_statistics=self.options["dry_run"]
            )
        names = {"padding_token": vocab._padding_token, "oov_token": vocab._oov_token}
        return {"type": "lm_from_files", "directory": directory, **names}

    def worker(self, section: Dict[str, Any], *place: Any) -> Callable[[int], Any]:
        """
        What a process of several runs, by its number on its machine. `section`: "distributed".
        `place`: the first one's address and port, and how many there are.
        """
        rest = {
            k: v
            for k, v in section.items()
            if k not in ("cuda_devices", "num_nodes", "primary_address", "primary_port")
        }
        return partial(
            train._train_worker,
            params=self.params,
            serialization_dir=str(self.folder),
            node_rank=self.node_rank,
            **dict(zip(("primary_addr", "primary_port", "world_size"), place)),
            distributed_device_ids=section["cuda_devices"],
            distributed_params=Params(rest),
            **self.options,
        )

    def spawned(self) -> Optional[Model]:
        """Starts the processes of this machine, which train and keep their models."""
        section = self.params.as_dict(quiet=True)["distributed"]
        devices, num_nodes = section.get("cuda_devices"), section.get("num_nodes", 1)
        if not (isinstance(devices, list) and (len(devices) > 1 or num_nodes > 1)):
            raise ConfigurationError(
                f"distributed.cuda_devices: expected a list of two devices or more, got {devices}."
            )
        check_for_gpu(devices)
        address = section.get("primary_address", "127.0.0.1")
        port = section.get("primary_port")
        if port is None and address not in ("127.0.0.1", "0.0.0.0", "localhost"):
            raise ConfigurationError(
                f"distributed.primary_port: name the port of {address} to meet at."
            )
        port = port or find_open_port()
        self.params["vocabulary"] = self.vocabulary(logged=True)
        self.drop_what_is_done()
        stopper.has_workers = True
        try:
            worker = self.worker(section, address, port, num_nodes * len(devices))
            mp.spawn(worker, nprocs=len(devices))
        finally:
            stopper.has_workers = False
        return None

    def launched(self, launch: Launch) -> None:
        """Trains as one of the processes that torchrun has started."""
        section = distributed_section(self.params.params, launch)
        self.params.params["distributed"] = section
        meeting = Meeting(launch)
        is_first = launch.local_rank == 0
        with run_folder.locked(self.folder, self.recover) if is_first else nullcontext():
            self.params["vocabulary"] = meeting.prepared(self.vocabulary)
            self.drop_what_is_done()
            worker = self.worker(section, launch.address, launch.port, launch.world_size)
            worker(launch.local_rank)
            if is_first:
                self.archive()


def _find_learning_rate_model(
    stock: Callable[..., None], params: Params, *args: Any, **kwargs: Any
) -> None:
    if not run_folder.is_ours(params):
        return stock(params, *args, **kwargs)
    trainer = params.params.get("trainer")
    if isinstance(trainer, dict):
        trainer.pop("max_bad_steps", None)
        trainer.pop("checkpointer", None)
        if trainer.get("type") == run_folder.TRAINER:
            del trainer["type"]
    with errors_are_ours():
        return stock(params, *args, **kwargs)
