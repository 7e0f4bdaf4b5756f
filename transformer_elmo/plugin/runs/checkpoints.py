"""
Checkpoints that tell whether they are whole: written under their names when every byte is on the
disk, with a checksum beside them, and passed over when they are damaged.
"""

import hashlib
import logging
import math
import os
import re
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List, Mapping, Optional, Set, Tuple, cast

import torch
import torch.distributed as dist
from allennlp.training.checkpointer import Checkpointer
from allennlp.training.trainer import TrainerCheckpoint

from transformer_elmo.archived_models import CHECKPOINT
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import remove_left_behind, write_text, written_whole
from transformer_elmo.nn.kernels.sparse_gradients import several_processes

logger = logging.getLogger(__name__)

# Epochs that were finished, and batches of the one after them.
Place = Tuple[int, int]

ADVICE = "Then go on with --recover."
SET_ASIDE = ".damaged"

_PART_OF_ONE = re.compile(
    r"(model_state|training_state|checksums)_e(\d+)_b(\d+)(_w\d+)?\.(th|sha256)"
)
# From this size on, hashing goes on beside writing.
_LARGE = 2**20


def find(checkpointer: Checkpointer) -> Set[Place]:
    """The checkpoints in the folder of a run, whatever characters its name has."""
    rank = f"_w{checkpointer._rank}" if checkpointer.state_is_sharded else None
    return {
        (int(match[1]), int(match[2]))
        for name in _names(Path(checkpointer._serialization_dir))
        if (match := CHECKPOINT.fullmatch(name)) and match[3] == rank
    }


def has_checkpoints(folder: Path) -> bool:
    """Whether a run has saved any state there."""
    return any(map(CHECKPOINT.fullmatch, _names(folder)))


def remove(checkpointer: Checkpointer, place: Place) -> None:
    """Removes a checkpoint, and the parts that other processes have written of it."""
    folder = Path(checkpointer._serialization_dir)
    for name in _names(folder):
        match = _PART_OF_ONE.fullmatch(name)
        if match and (int(match[2]), int(match[3])) == place:
            (folder / name).unlink(missing_ok=True)


def save(checkpointer: Checkpointer, state: TrainerCheckpoint) -> None:
    """
    Writes a checkpoint, unless it is there already. The model's state gets its name last: with it
    there, all is.

    # Parameters

    checkpointer : `Checkpointer`
    state : `TrainerCheckpoint`

    # Raises

    `ConfigurationError`
        If the weights have a NaN, or the disk has no room.
    """
    place = (
        state.trainer_state["epochs_completed"],
        state.trainer_state["batches_in_epoch_completed"],
    )
    model_path, training_path, sums_path = _paths(checkpointer, place)
    if all(path.is_file() for path in (model_path, training_path, sums_path)):
        return
    check_numbers(state.model_state, str(model_path))
    _check_room(model_path, state)
    written = [training_path, sums_path]
    try:
        with written_whole(training_path, advice=ADVICE) as file:
            training_sum = dump(state.trainer_state, file)
        sums = {training_path.name: training_sum}
        with written_whole(
            model_path, before=lambda: _write_sums(sums_path, sums), advice=ADVICE
        ) as file:
            sums[model_path.name] = dump(state.model_state, file)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def load(checkpointer: Checkpointer) -> Optional[TrainerCheckpoint]:
    """
    The newest checkpoint that is whole. Newer ones, which are damaged, are set aside: they keep
    their content under another name.

    # Parameters

    checkpointer : `Checkpointer`

    # Returns

    `TrainerCheckpoint`, optional
        `None` if there are no checkpoints.

    # Raises

    `ConfigurationError`
        If there are some, and all are damaged.
    """
    if not several_processes() or checkpointer.state_is_sharded:
        return _newest_whole(checkpointer)
    # One process of each machine looks, so that no two move the same file.
    places: Optional[List[Place]] = None
    message: Optional[str] = None
    if is_first_of_node(checkpointer):
        try:
            places = _all_whole(checkpointer)
        except ConfigurationError as error:
            message = str(error)
    gathered: List[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (places, message))
    for _, said in gathered:
        if said is not None:
            raise ConfigurationError(said)
    of_nodes = [set(map(tuple, found)) for found, _ in gathered if found is not None]
    common: Set[Place] = set.intersection(*of_nodes)
    if not any(of_nodes):
        return None
    if not common:
        raise ConfigurationError(
            "The machines of this run have no whole checkpoint in common: there are "
            f"{' and '.join(', '.join(map(_name, sorted(f))) or 'none' for f in of_nodes)}. "
            "Copy one to all of them, or begin anew with --force."
        )
    place = max(common)
    for newer in places or ():
        if newer > place:
            _set_aside(checkpointer, newer)
    dist.barrier()
    return _loaded(checkpointer, place)


def is_first_of_node(checkpointer: Checkpointer) -> bool:
    """Whether this process writes the checkpoints of its machine."""
    return checkpointer._rank % int(os.environ.get("ALLENNLP_PROCS_PER_NODE", 10**9)) == 0


def _all_whole(checkpointer: Checkpointer) -> List[Place]:
    """As `_newest_whole`, and the older ones that are whole as well."""
    if _newest_whole(checkpointer) is None:
        return []
    newest, *older = sorted(find(checkpointer), reverse=True)
    if dist.get_world_size() <= int(os.environ.get("ALLENNLP_PROCS_PER_NODE", 10**9)):
        return [newest]
    return [newest, *(place for place in older if _problem(checkpointer, place) is None)]


def _newest_whole(checkpointer: Checkpointer) -> Optional[TrainerCheckpoint]:
    folder = Path(checkpointer._serialization_dir)
    if folder.is_dir():
        _remove_unfinished(checkpointer)
        remove_left_behind(folder)
    damaged: List[Tuple[Place, str]] = []
    for place in sorted(find(checkpointer) | _without_model(checkpointer), reverse=True):
        problem = _problem(checkpointer, place)
        state = None
        if problem is None:
            try:
                state = _loaded(checkpointer, place)
                check_numbers(state.model_state, _paths(checkpointer, place)[0].name)
            except ConfigurationError as error:
                problem = str(error)
        if problem is None:
            for newer, _ in damaged:
                _set_aside(checkpointer, newer)
            if damaged:
                logger.warning(
                    "Damaged and set aside as *%s: %s. Going on from the checkpoint before, %s.",
                    SET_ASIDE,
                    "; ".join(said for _, said in damaged),
                    _name(place),
                )
            return state
        damaged.append((place, problem))
    if damaged:
        raise ConfigurationError(
            f"No checkpoint in {folder} is whole: {'; '.join(said for _, said in damaged)}. "
            "Restore one from a copy, or begin anew with --force."
        )
    return None


def _loaded(checkpointer: Checkpointer, place: Place) -> TrainerCheckpoint:
    model_path, training_path, _ = _paths(checkpointer, place)
    return TrainerCheckpoint(
        *(torch.load(path, map_location="cpu") for path in (model_path, training_path))
    )


def _problem(checkpointer: Checkpointer, place: Place) -> Optional[str]:
    """What is wrong with the files of a checkpoint."""
    model_path, training_path, sums_path = _paths(checkpointer, place)
    for path in (model_path, training_path):
        if path.is_dir():
            return f"{path.name} is a folder"
        if not path.exists():
            return f"{path.name} is missing"
    try:
        sums = _read_sums(sums_path)
        for path in (model_path, training_path):
            if sums is None:
                # An earlier version wrote it: there are the sums that torch's own format has.
                with zipfile.ZipFile(path) as archive:
                    whole = archive.testzip() is None
            else:
                whole = sums.get(path.name) == _sum_of(path)
            if not whole:
                return f"{path.name} is not what was written"
    except PermissionError:
        # It may well be whole, and isn't passed over.
        raise ConfigurationError(f"{path} can't be read: permission denied.") from None
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError):
        return f"{path.name} is not what was written"
    return None


def _set_aside(checkpointer: Checkpointer, place: Place) -> None:
    for path in _paths(checkpointer, place):
        if path.exists():
            target = path.with_name(path.name + SET_ASIDE)
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)


def _without_model(checkpointer: Checkpointer) -> Set[Place]:
    """The checkpoints of which there is a part, but not the one that comes last."""
    rank = f"_w{checkpointer._rank}" if checkpointer.state_is_sharded else None
    parts = {
        (int(match[2]), int(match[3]))
        for name in _names(Path(checkpointer._serialization_dir))
        if (match := _PART_OF_ONE.fullmatch(name)) and match[4] == rank
    }
    return parts - find(checkpointer)


def _remove_unfinished(checkpointer: Checkpointer) -> None:
    """What a run leaves that is killed while it writes a checkpoint."""
    for place in _without_model(checkpointer):
        model_path, training_path, sums_path = _paths(checkpointer, place)
        being_written = f".{model_path.name}."
        if not sums_path.exists() or any(
            name.startswith(being_written) for name in _names(model_path.parent)
        ):
            logger.warning(
                "The checkpoint %s was still being written when the run ended, and is removed.",
                _name(place),
            )
            for path in (training_path, sums_path):
                if path.is_file():
                    path.unlink()


def check_numbers(state: Mapping[str, Any], shown: str) -> None:
    """
    # Parameters

    state : `Mapping[str, Any]`
        Names of tensors and tensors.
    shown : `str`
        The file that has them or is to have them, for messages.

    # Raises

    `ConfigurationError`
        If one has a NaN.
    """
    names = [
        name
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel()
    ]
    if not names:
        return
    # A NaN makes the sum one, and one transfer tells for all of them; so may infinities.
    sums = torch.stack([state[name].detach().sum(dtype=torch.float32).cpu() for name in names])
    for name, total in zip(names, sums.tolist()):
        if math.isnan(total) and bool(state[name].isnan().any()):
            count = int(state[name].isnan().sum())
            raise ConfigurationError(
                f"{shown}: {count} of {state[name].numel()} numbers of the weights {name} are NaN"
            )


def dump(value: Any, file: IO[bytes]) -> str:
    """
    Writes with `torch.save`.

    # Returns

    `str`
        The SHA-256 of what was written.
    """
    with _Hashing(file) as hashing:
        torch.save(value, cast(IO[bytes], hashing))
    return hashing.digest.hexdigest()


class _Hashing:
    """A file that is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> "_Hashing":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._thread.shutdown()

    def write(self, data: Any) -> int:
        if memoryview(data).nbytes < _LARGE:
            self.digest.update(data)
            return self.file.write(data)
        hashed = self._thread.submit(self.digest.update, data)
        try:
            return self.file.write(data)
        finally:
            # The memory may be another's after this.
            hashed.result()

    def flush(self) -> None:
        self.file.flush()


def _sum_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _write_sums(path: Path, sums: Dict[str, str]) -> None:
    # As `sha256sum --check` takes it.
    write_text(path, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def _read_sums(path: Path) -> Optional[Dict[str, str]]:
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _check_room(path: Path, state: TrainerCheckpoint) -> None:
    """
    # Raises

    `ConfigurationError`
        If the disk has less room than the checkpoint takes.
    """
    storages = {}
    for tensor in _tensors([state.model_state, state.trainer_state]):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    needed, free = sum(storages.values()), shutil.disk_usage(path.parent).free
    if needed > free:
        raise ConfigurationError(
            f"{path} and its training state can't be written: they take {needed:,} bytes, and "
            f"{free:,} are free on the disk, {needed - free:,} too few. Make room. {ADVICE}"
        )


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _paths(checkpointer: Checkpointer, place: Place) -> Tuple[Path, Path, Path]:
    model_path = Path(checkpointer._model_state_path(*place))
    sums_name = model_path.name.replace("model_state", "checksums").replace(".th", ".sha256")
    return (
        model_path,
        Path(checkpointer._training_state_path(*place)),
        model_path.with_name(sums_name),
    )


def _name(place: Place) -> str:
    return "e{}_b{}".format(*place)


def _names(folder: Path) -> List[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
