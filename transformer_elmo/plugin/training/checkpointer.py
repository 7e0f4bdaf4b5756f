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
from typing import IO, Any, Dict, List, Mapping, Optional, Pattern, Set, Tuple, cast

import torch
import torch.distributed as dist
from allennlp.training.checkpointer import Checkpointer
from allennlp.training.trainer import Trainer, TrainerCheckpoint
from overrides import overrides

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import remove_left_behind, write_text, written_whole
from transformer_elmo.nn.kernels.sparse_gradients import several_processes
from transformer_elmo.pretrained.archive import CHECKPOINT

logger = logging.getLogger(__name__)

# Epochs that were finished, and batches of the one after them.
Place = Tuple[int, int]

ADVICE = "Then go on with --recover."
SET_ASIDE = ".damaged"

_PART_OF_ONE = re.compile(
    r"(?:model_state|training_state|checksums)_e(\d+)_b(\d+)(_w\d+)?\.(?:th|sha256)"
)
# From this size on, hashing goes on beside writing.
_LARGE = 2**20


@Checkpointer.register("crash_safe", exist_ok=True)
class CrashSafeCheckpointer(Checkpointer):
    """
    AllenNLP's checkpointer, whose files are written whole or not at all and have checksums.
    Damaged checkpoints are set aside (`*.damaged`), and the newest whole one is taken. Weights with
    a NaN are not written.

    Registered as a `Checkpointer` with name "crash_safe". The parameters are AllenNLP's.
    """

    # Checkpoints without a type, and AllenNLP's own, are this one where this class is asked for.
    default_implementation = "crash_safe"

    @property
    @overrides
    def _is_primary(self) -> bool:
        """Whether this process writes the checkpoints of its machine."""
        return self._rank % int(os.environ.get("ALLENNLP_PROCS_PER_NODE", 10**9)) == 0

    @overrides
    def maybe_save_checkpoint(self, *args: Any, **kwargs: Any) -> bool:
        super().maybe_save_checkpoint(*args, **kwargs)
        # Or the trainer would remove best.th and link the checkpoint in its place; so it writes it.
        return False

    @overrides
    def save_checkpoint(self, trainer: Trainer) -> None:
        state = trainer.get_checkpoint_state()
        if state is not None:
            self._write(state)
        # It finds the files, and removes old checkpoints.
        super().save_checkpoint(trainer)

    @overrides
    def _find_all_checkpoints(self) -> Set[Place]:
        # Whatever characters the folder's name has.
        return self._found(CHECKPOINT)

    def _found(self, pattern: Pattern[str]) -> Set[Place]:
        """The checkpoints with a file whose name has a pattern: epochs, batches, a process."""
        rank = f"_w{self._rank}" if self.state_is_sharded else None
        return {
            (int(match[1]), int(match[2]))
            for name in _names(Path(self._serialization_dir))
            if (match := pattern.fullmatch(name)) and match[3] == rank
        }

    @overrides
    def _remove_checkpoint(self, epochs_completed: int, batches_in_epoch_completed: int) -> None:
        # The parts of other processes as well.
        for name in _names(Path(self._serialization_dir)):
            match = _PART_OF_ONE.fullmatch(name)
            if match and (int(match[1]), int(match[2])) == (
                epochs_completed,
                batches_in_epoch_completed,
            ):
                Path(self._serialization_dir, name).unlink(missing_ok=True)

    def _write(self, state: TrainerCheckpoint) -> None:
        """
        Writes a checkpoint, unless it is there already. The model's state gets its name last: with
        it there, all is.

        Raises `ConfigurationError` if the weights have a NaN, or the disk has no room.
        """
        place = (
            state.trainer_state["epochs_completed"],
            state.trainer_state["batches_in_epoch_completed"],
        )
        model_path, training_path, sums_path = self._paths(place)
        if all(path.is_file() for path in (model_path, training_path, sums_path)):
            return
        check_numbers(state.model_state, str(model_path))
        written = [training_path, sums_path]
        try:
            with written_whole(training_path, advice=ADVICE) as file:
                training_sum = dump(state.trainer_state, file)
            sums = {training_path.name: training_sum}

            def write_sums() -> None:
                # As `sha256sum --check` takes it.
                lines = [f"{digest}  {name}\n" for name, digest in sums.items()]
                write_text(sums_path, "".join(lines))

            with written_whole(model_path, before=write_sums, advice=ADVICE) as file:
                sums[model_path.name] = dump(state.model_state, file)
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise

    @overrides
    def load_checkpoint(self) -> Optional[TrainerCheckpoint]:
        """
        The newest checkpoint that is whole. Newer ones, which are damaged, are set aside: they keep
        their content under another name.

        Returns `None` if there are no checkpoints. Raises `ConfigurationError` if there are some,
        and all are damaged.
        """
        if not several_processes() or self.state_is_sharded:
            return self._newest_whole()
        # One process of each machine looks, so that no two move the same file.
        places: Optional[List[Place]] = None
        message: Optional[str] = None
        if self._is_primary:
            try:
                places = self._all_whole()
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
                self._set_aside(newer)
        dist.barrier()
        return self._loaded(place)

    def _all_whole(self) -> List[Place]:
        """As `_newest_whole`, and the older ones that are whole as well."""
        if self._newest_whole() is None:
            return []
        newest, *older = sorted(self._find_all_checkpoints(), reverse=True)
        if dist.get_world_size() <= int(os.environ.get("ALLENNLP_PROCS_PER_NODE", 10**9)):
            return [newest]
        return [newest, *(place for place in older if self._problem(place) is None)]

    def _newest_whole(self) -> Optional[TrainerCheckpoint]:
        folder = Path(self._serialization_dir)
        if folder.is_dir():
            self._remove_unfinished()
            remove_left_behind(folder)
        damaged: List[Tuple[Place, str]] = []
        for place in sorted(self._find_all_checkpoints() | self._without_model(), reverse=True):
            problem = self._problem(place)
            state = None
            if problem is None:
                try:
                    state = self._loaded(place)
                    check_numbers(state.model_state, self._paths(place)[0].name)
                except ConfigurationError as error:
                    problem = str(error)
            if problem is None:
                for newer, _ in damaged:
                    self._set_aside(newer)
                if damaged:
                    logger.warning(
                        "Damaged and set aside as *%s: %s. Going on from the checkpoint before, "
                        "%s.",
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

    def _loaded(self, place: Place) -> TrainerCheckpoint:
        model_path, training_path, _ = self._paths(place)
        return TrainerCheckpoint(
            *(torch.load(path, map_location="cpu") for path in (model_path, training_path))
        )

    def _problem(self, place: Place) -> Optional[str]:
        """What is wrong with the files of a checkpoint."""
        model_path, training_path, sums_path = self._paths(place)
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

    def _set_aside(self, place: Place) -> None:
        for path in self._paths(place):
            if path.exists():
                target = path.with_name(path.name + SET_ASIDE)
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(path, target)

    def _without_model(self) -> Set[Place]:
        """The checkpoints of which there is a part, but not the one that comes last."""
        return self._found(_PART_OF_ONE) - self._find_all_checkpoints()

    def _remove_unfinished(self) -> None:
        """What a run leaves that is killed while it writes a checkpoint."""
        for place in self._without_model():
            model_path, training_path, sums_path = self._paths(place)
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

    def _paths(self, place: Place) -> Tuple[Path, Path, Path]:
        model_path = Path(self._model_state_path(*place))
        sums_name = model_path.name.replace("model_state", "checksums").replace(".th", ".sha256")
        return (
            model_path,
            Path(self._training_state_path(*place)),
            model_path.with_name(sums_name),
        )


CrashSafeCheckpointer.register("crash_safe", exist_ok=True)(CrashSafeCheckpointer)
CrashSafeCheckpointer.register("default", exist_ok=True)(CrashSafeCheckpointer)


def has_checkpoints(folder: Path) -> bool:
    """Whether a run has saved any state there."""
    return any(map(CHECKPOINT.fullmatch, _names(folder)))


def check_numbers(state: Mapping[str, Any], shown: str) -> None:
    """
    `state`: names of tensors and tensors. `shown`: the file that has them or is to have them, for
    messages. Raises `ConfigurationError` if one has a NaN.
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

    Returns the SHA-256 of what was written.
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


def _read_sums(path: Path) -> Optional[Dict[str, str]]:
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _name(place: Place) -> str:
    return "e{}_b{}".format(*place)


def _names(folder: Path) -> List[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
