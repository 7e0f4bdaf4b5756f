"""`python -m transformer_elmo.legacy OLD NEW`, as `transformer-elmo convert` was first called."""

import sys

from transformer_elmo.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
