"""
Checkpoints that tell whether they are whole: written under their names when every byte is on the
disk, with a checksum beside them, and passed over when they are damaged.
"""

import hashlib
import logging
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
        return self._rank % self._local_size == 0

    @property
    def _local_size(self) -> int:
        return int(os.environ.get("ALLENNLP_PROCS_PER_NODE", 10**9))

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
        place = (epochs_completed, batches_in_epoch_completed)
        for name in _names(Path(self._serialization_dir)):
            match = _PART_OF_ONE.fullmatch(name)
            if match and (int(match[1]), int(match[2])) == place:
                Path(self._serialization_dir, name).unlink(missing_ok=True)

    def _write(self, state: TrainerCheckpoint) -> None:
        """
        Writes a checkpoint, unless it is there already. The model's state gets its name last: with
        it there, all is.

        Raises `ConfigurationError` if the weights have a NaN, or the disk has no room.
        """
        names = ("epochs_completed", "batches_in_epoch_completed")
        paths = self._paths(tuple(state.trainer_state[name] for name in names))
        if all(path.is_file() for path in paths):
            return
        model_path, training_path, sums_path = paths
        check_numbers(state.model_state, str(model_path))
        try:
            with written_whole(training_path, advice=ADVICE) as file:
                training_sum = dump(state.trainer_state, file)

            def write_sums() -> None:
                # As `sha256sum --check` takes it.
                sums = {training_path.name: training_sum, model_path.name: model_sum}
                write_text(sums_path, "".join(f"{sums[name]}  {name}\n" for name in sums))

            with written_whole(model_path, before=write_sums, advice=ADVICE) as file:
                model_sum = dump(state.model_state, file)
        except BaseException:
            for path in (training_path, sums_path):
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
            places = self._whole_ones()
        else:
            places = self._whole_everywhere()
        if not places:
            return None
        model_path, training_path, _ = self._paths(max(places))
        return TrainerCheckpoint(
            *(torch.load(path, map_location="cpu") for path in (model_path, training_path))
        )

    def _whole_everywhere(self) -> Set[Place]:
        """The checkpoints that all machines have. One process of each looks at its files."""
        mine: Any = None
        if self._is_primary:
            machines = dist.get_world_size() // int(
                os.environ.get("ALLENNLP_PROCS_PER_NODE", 10**9)
            )
            try:
                mine = self._whole_ones(older_too=machines > 1)
            except ConfigurationError as error:
                mine = str(error)
        gathered: List[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        found = [places for places in gathered if places is not None]
        for said in found:
            if isinstance(said, str):
                raise ConfigurationError(said)
        common: Set[Place] = set.intersection(*found)
        if any(found) and not common:
            have = " and ".join(", ".join(map(_name, sorted(each))) or "none" for each in found)
            raise ConfigurationError(
                f"The machines of this run have no whole checkpoint in common: there are {have}. "
                "Copy one to all of them, or begin anew with --force."
            )
        for place in mine or ():
            if place > max(common):
                self._set_aside(place)
        dist.barrier()
        return common

    def _whole_ones(self, older_too: bool = False) -> Set[Place]:
        """The newest checkpoint that is whole, or with `older_too` all that are."""
        folder = Path(self._serialization_dir)
        self._remove_unfinished()
        remove_left_behind(folder)
        whole: Set[Place] = set()
        damaged: Dict[Place, str] = {}
        for place in sorted(self._find_all_checkpoints() | self._without_model(), reverse=True):
            if whole and not older_too:
                break
            problem = self._problem(place)
            if problem is None:
                whole.add(place)
            elif not whole:
                damaged[place] = problem
        said = "; ".join(damaged.values())
        if damaged and not whole:
            raise ConfigurationError(
                f"No checkpoint in {folder} is whole: {said}. Restore one from a copy, or begin "
                "anew with --force."
            )
        for place in damaged:
            self._set_aside(place)
        if damaged:
            logger.warning(
                "Damaged and set aside as *%s: %s. Going on from the checkpoint before, %s.",
                *(SET_ASIDE, said, _name(max(whole))),
            )
        return whole

    def _problem(self, place: Place) -> Optional[str]:
        """What is wrong with the files of a checkpoint."""
        *states, sums_path = self._paths(place)
        for path in states:
            if not path.is_file():
                return f"{path.name} is {'a folder' if path.is_dir() else 'missing'}"
        try:
            sums = _read_sums(sums_path)
            for path in states:
                if sums is not None:
                    is_whole = sums.get(path.name) == _sum_of(path)
                else:
                    # Version 0.2.0 wrote it: there are the sums that torch's own format has.
                    with zipfile.ZipFile(path) as archive:
                        is_whole = archive.testzip() is None
                if not is_whole:
                    return f"{path.name} is not what was written"
            if sums is None:
                check_numbers(torch.load(states[0], map_location="cpu"), states[0].name)
        except PermissionError:
            # It may well be whole, and isn't passed over.
            raise ConfigurationError(f"{path} can't be read: permission denied.") from None
        except ConfigurationError as error:
            return str(error)
        except (OSError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError):
            return f"{path.name} is not what was written"
        return None

    def _set_aside(self, place: Place) -> None:
        for path in self._paths(place):
            if path.exists():
                target = path.with_name(path.name + SET_ASIDE)
                # A file can't take the place of a folder.
                shutil.rmtree(target, ignore_errors=True)
                os.replace(path, target)

    def _without_model(self) -> Set[Place]:
        """The checkpoints of which there is a part, but not the one that comes last."""
        return self._found(_PART_OF_ONE) - self._find_all_checkpoints()

    def _remove_unfinished(self) -> None:
        """What a run leaves that is killed while it writes a checkpoint."""
        for place in self._without_model():
            model_path, _, sums_path = self._paths(place)
            names = _names(model_path.parent)
            if not sums_path.exists() or any(n.startswith(f".{model_path.name}.") for n in names):
                logger.warning(
                    "The checkpoint %s was still being written when the run ended, and is removed.",
                    _name(place),
                )
                for path in self._paths(place):
                    path.unlink(missing_ok=True)

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
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            continue
        # A NaN makes the sum one, and so may infinities.
        if bool(tensor.detach().sum(dtype=torch.float32).isnan()) and bool(tensor.isnan().any()):
            count = int(tensor.isnan().sum())
            raise ConfigurationError(
                f"{shown}: {count} of {tensor.numel()} numbers of the weights {name} are NaN"
            )


def dump(value: Any, file: IO[bytes]) -> str:
    """
    Writes with `torch.save`.

    Returns the SHA-256 of what was written.
    """
    with ThreadPoolExecutor(1) as thread:
        hashing = _Hashing(file, thread)
        torch.save(value, cast(IO[bytes], hashing))
    return hashing.digest.hexdigest()


class _Hashing:
    """A file that is hashed beside being written."""

    def __init__(self, file: IO[bytes], thread: ThreadPoolExecutor) -> None:
        self.flush = file.flush
        self.digest = hashlib.sha256()
        self._file, self._thread = file, thread

    def write(self, data: Any) -> int:
        hashed = self._thread.submit(self.digest.update, data)
        try:
            return self._file.write(data)
        finally:
            # The memory may be another's after this.
            hashed.result()


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
