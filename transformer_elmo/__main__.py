"""`python -m transformer_elmo` is `transformer-elmo`."""

import sys

from transformer_elmo.commands.cli import main

sys.exit(main())
