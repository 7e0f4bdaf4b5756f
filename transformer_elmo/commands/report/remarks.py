"""Parts of the report that can't be made, each with a reason that a reader can use."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformer_elmo.errors import first_line

logger = logging.getLogger(__name__)


class MissingPartError(Exception):
    """A part of the report can't be made. The message says why; the rest of it is all right."""


@contextmanager
def else_missing(reason: str, *errors: type[Exception]) -> Iterator[None]:
    """
    Makes one line of what goes wrong in the block.

    `reason`: what can't be done, the beginning of that line. `errors`: those that aren't to end the
    command. Raises `MissingPartError` in place of one of `errors`.
    """
    try:
        yield
    except errors as error:
        logger.debug("%s", reason, exc_info=True)
        raise MissingPartError(f"{reason}: {first_line(error)}") from error
