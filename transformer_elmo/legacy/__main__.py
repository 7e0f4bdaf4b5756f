"""`python -m transformer_elmo.legacy OLD NEW`: converts a config or an archive of AllenNLP 0.x."""

import argparse
import sys
from pathlib import Path
from typing import List, Optional

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.legacy.convert import convert


def main(arguments: Optional[List[str]] = None) -> int:
    """
    # Returns

    `int`
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m transformer_elmo.legacy",
        description="Writes the AllenNLP 2 form of a config (.jsonnet, .json) or of a model "
        "archive (.tar.gz) "
        "of AllenNLP 0.7 to 0.9, and prints what it changed.",
    )
    parser.add_argument("old", type=Path, help="the config or archive to read")
    parser.add_argument("new", type=Path, help="the config or archive to write")
    parser.add_argument("--force", action="store_true", help="overwrite NEW if it exists")
    args = parser.parse_args(arguments)
    try:
        changes = convert(args.old, args.new, args.force)
    except (ConfigurationError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for change in changes:
        print(f"{'DROPPED ' if change.dropped else ''}{change}")
    if not changes:
        print(f"{args.old} has nothing of AllenNLP 0.x in it.")
    print(f"wrote {args.new}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
