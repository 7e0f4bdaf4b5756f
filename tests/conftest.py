"""Fixtures that tests of several rooms share."""

import logging
import os
import random
import resource
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, ContextManager, Iterator, List

# Before anything starts threads: tests run side by side on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model

from tests.small_lm import WORDS, experiment_config, model_config, write_archive
from transformer_elmo import TransformerElmo

torch.set_num_threads(1)


_start: Any = subprocess.Popen.__init__


def _start_with_a_seed(process: Any, *args: Any, env: Any = None, **kwargs: Any) -> None:
    """Gives each process a hash seed of its own, and prints it: no result is to depend on it."""
    seed = str(random.SystemRandom().randrange(2**32))
    print(f"PYTHONHASHSEED={seed} for", *args)
    environment = {**(os.environ if env is None else env), "PYTHONHASHSEED": seed}
    _start(process, *args, env=environment, **kwargs)


subprocess.Popen.__init__ = _start_with_a_seed  # type: ignore[assignment,method-assign]


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Files with slow tests come first: the last process isn't left with one of them alone."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def no_log_of_a_run_before() -> Iterator[None]:
    """A training run logs all that its process does later, too, to what a test closes behind it."""
    kinds = (logging.FileHandler, logging.StreamHandler)
    yield
    for logger in (logging.getLogger(), logging.getLogger("tqdm")):
        # Not pytest's, which are of classes of their own.
        for handler in [handler for handler in logger.handlers if type(handler) in kinds]:
            logger.removeHandler(handler)
            handler.close()


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., str]:
    """Runs code in a process of its own, in the test's folder; what it printed."""

    def run(code: str, *arguments: Any, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def no_larger_files() -> Callable[[int], ContextManager[None]]:
    """The system's own refusal to write files of more bytes, whatever library writes."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    vocabulary = Vocabulary(non_padded_namespaces=["*labels", "*tags"])
    vocabulary.add_tokens_to_namespace(["</S>", "<S>", *WORDS[:-3]])
    return vocabulary


@pytest.fixture
def make_model(vocabulary: Vocabulary) -> Callable[..., Model]:
    def make(**changes: Any) -> Model:
        torch.manual_seed(1)
        return Model.from_params(vocab=vocabulary, params=Params(model_config(**changes)))

    return make


@pytest.fixture(scope="session")
def lm_archive(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    torch.manual_seed(2)
    model = Model.from_params(vocab=vocabulary, params=Params(model_config()))
    return write_archive(tmp_path_factory.mktemp("lm"), experiment_config(), model)


@pytest.fixture(scope="session")
def elmo(lm_archive: Path) -> TransformerElmo:
    """Of `lm_archive`; for tests that leave it as it is."""
    return TransformerElmo.open(lm_archive, device="cpu")
