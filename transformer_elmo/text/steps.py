"""
The steps of a training run that goes on with another number of processes: the same sentences a
step, divided anew.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Callable, Dict, List, Optional, Sequence

from transformer_elmo.text.batching import Batch


@dataclass(frozen=True)
class Step:
    """
    How many batches make a step.

    # Attributes

    processes : `int`
        Those of a round, one for each process.
    accumulation : `int`
        Rounds whose gradients are added up.
    batches_per_epoch : `int`, optional
        Rounds of an epoch, where that isn't a pass over the corpus.
    """

    processes: int
    accumulation: int
    batches_per_epoch: Optional[int] = None

    def num_batches(self) -> int:
        """All of a step."""
        return self.processes * self.accumulation

    def to_json(self) -> Dict[str, Any]:
        """As `Step(**value)` takes it."""
        return asdict(self)


@dataclass(frozen=True)
class Piece:
    """
    # Attributes

    batch : `Batch`
    round_number : `int`
        The round of the step, as the run was begun, that it comes from.
    is_copy : `bool`
        Whether another process has these sentences, too, so that they must not count here.
    """

    batch: Any
    round_number: int
    is_copy: bool = False


def divide(
    rounds: Sequence[Sequence[Batch]], num_processes: int, num_rounds: int
) -> List[List[Piece]]:
    """
    Divides the batches of a step among another number of processes. Where there are fewer batches
    than they need, the largest are halved until there are enough. Where there are fewer sentences,
    some processes have a copy of the shortest.

    # Parameters

    rounds : `Sequence[Sequence[Batch]]`
        The step as the run was begun.
    num_processes : `int`
    num_rounds : `int`
        The rounds that a step has now.

    # Returns

    `List[List[Piece]]`
        The rounds now, each with a piece for each process. Pieces come in the order of the batches.
    """
    pieces = [Piece(batch, n) for n, batches in enumerate(rounds) for batch in batches]
    needed = num_processes * num_rounds
    while len(pieces) < needed:
        divisible = [i for i, piece in enumerate(pieces) if len(piece.batch) > 1]
        if not divisible:
            shortest = min(pieces, key=lambda piece: piece.batch.num_padded_tokens())
            pieces += [replace(shortest, is_copy=True)] * (needed - len(pieces))
            break
        largest = max(divisible, key=lambda i: pieces[i].batch.num_padded_tokens())
        piece = pieces[largest]
        halves = piece.batch.split(len(piece.batch) // 2)
        pieces[largest : largest + 1] = [replace(piece, batch=half) for half in halves]
    return [pieces[i : i + num_processes] for i in range(0, needed, num_processes)]


def weights_of_pieces(
    rounds: Sequence[Sequence[Batch]],
    divided: Sequence[Sequence[Piece]],
    num_words: Callable[[Any], int],
) -> List[List[float]]:
    """
    What each piece's loss must be multiplied by, where that is the sum over its words divided by
    the mean number of words of a process. The loss of a round is the mean over its words, and that
    of a step the mean over its rounds, and both are to stay what they were.

    # Parameters

    rounds : `Sequence[Sequence[Batch]]`
        The step as the run was begun.
    divided : `Sequence[Sequence[Piece]]`
        The step now.
    num_words : `Callable[[Batch], int]`
        How many words of a batch are predicted.

    # Returns

    `List[List[float]]`
    """
    before = [max(1, sum(map(num_words, batches))) for batches in rounds]
    found = []
    for pieces in divided:
        total = sum(num_words(piece.batch) for piece in pieces)
        factor = total * len(divided) / len(rounds)
        found.append([0.0 if p.is_copy else factor / before[p.round_number] for p in pieces])
    return found
