"""
Model folders on the Hugging Face Hub: `hf://user/model`, or `hf://user/model@revision`, a branch, a
tag or a commit. The package huggingface_hub brings them, with its own cache and environment
variables: `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE`, `HF_ENDPOINT`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformer_elmo.errors import ConfigurationError, first_line, needed
from transformer_elmo.files import read_json
from transformer_elmo.pretrained.folder import CARD, CONFIG, FORMAT, VOCABULARY, WEIGHTS

PREFIX, GRAPH = "hf://", "model.onnx*"

# With anything behind a slash it is a file, which `cached_path` brings.
_NAME = re.compile(rf"{PREFIX}([\w.-]+/[\w.-]+)(?:@([^/@]+|refs/pr/\d+))?")

_LOG_IN = "log in (hf auth login), or give a token (HF_TOKEN) that may do this"

# By the names of errors: they and their modules differ between versions of huggingface_hub.
_REASONS = {
    "GatedRepoError": f"its owner gives access on request. Ask for it on its page, and {_LOG_IN}",
    "RepositoryNotFoundError": "the Hub has no such repository, or it is a private one. Check the "
    f"name, or {_LOG_IN}",
    "HFValidationError": "the Hub has no such names",
    "RevisionNotFoundError": "the repository has no such revision",
    "OfflineModeIsEnabled": "it isn't in the cache, and HF_HUB_OFFLINE keeps it from the Hub",
    "LocalEntryNotFoundError": "it isn't in the cache, and HF_HUB_OFFLINE keeps it from the Hub",
}


def name_of(path: str, revision: str | None = None) -> str:
    """`user/model`, where nothing lies at such a path, as a name of the Hub; others as they are."""
    if _NAME.fullmatch(PREFIX + path) and not Path(path).exists():
        path = PREFIX + path
    if revision is None:
        return path
    if not _NAME.fullmatch(f"{path}@{revision}"):
        raise ConfigurationError(
            f"A revision is one of a repository of the Hub, user/model: got {revision!r} of {path}."
        )
    return f"{path}@{revision}"


def local(name: str, token: str | None = None, more: Sequence[str] = ()) -> str:
    """
    The folder in huggingface_hub's cache with what a repository holds; the path itself if it is no
    repository's name, or one of an archive that AllenNLP has unpacked, which `cached_path` brings.

    `more`: patterns of files wanted beside those of each model folder. Raises `ConfigurationError`
    if there is no such repository, or it holds something else; if the Hub can't be reached.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    get = partial(needed("huggingface_hub", name).snapshot_download, match[1], token=token)
    with _errors(name):
        # Nothing else of a repository that isn't ours is asked for.
        folder = Path(get(revision=match[2], allow_patterns=[CONFIG]))
    content = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    if content.get("format") != FORMAT:
        if isinstance(content.get("model"), dict):
            return name
        raise ConfigurationError(
            f"{name} holds no model folder of transformer-elmo: it has no {CONFIG} of one."
        )
    files = [CONFIG, WEIGHTS, VOCABULARY, CARD, *more]
    with _errors(name):
        # Of the same commit, whatever happens meanwhile.
        return str(get(revision=folder.name, allow_patterns=files))


def upload(folder: Path, name: str, private: bool | None, token: str | None, message: str) -> str:
    """
    Makes a folder the content of a repository, which is made if it isn't there. Returns its
    address. Raises `ConfigurationError` if the Hub can't be reached, or refuses.
    """
    hub: Any = needed("huggingface_hub", "push_to_hub")
    with _errors(name):
        api = hub.HfApi(token=token)
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=folder,
            commit_message=message,
            # Of a model that was there before.
            delete_patterns=GRAPH,
        )
    return str(address)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """What huggingface_hub and its HTTP client raise, as one message."""
    try:
        yield
    except Exception as error:
        is_local = "LocalEntry" in type(error).__name__
        found = (is_local and error.__cause__) or error
        kinds = [kind.__name__ for kind in type(found).__mro__]
        reason = next((_REASONS[kind] for kind in kinds if kind in _REASONS), None)
        if reason is None:
            status = getattr(getattr(found, "response", None), "status_code", None)
            cure = _LOG_IN if status in (401, 403) else "check the connection, and try again"
            reason = f"the Hub can't be asked ({first_line(found):.300}): {cure}"
        raise ConfigurationError(f"{name}: {reason}.") from error
