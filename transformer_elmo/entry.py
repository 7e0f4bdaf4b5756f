"""How this process was started."""

import sys
from pathlib import Path


def is_command() -> bool:
    """Whether this process is `transformer-elmo`, or `python -m` of something in this package."""
    program = Path((getattr(sys, "argv", None) or [""])[0]).stem
    if program == "transformer-elmo":
        return True
    options = sys.orig_argv[1:]
    module = options[options.index("-m") + 1 :][:1] if "-m" in options else []
    # While `python -m` looks for the module, that is all the name there is.
    return program == "-m" and module != [] and module[0].split(".")[0] == "transformer_elmo"
