"""The conversion needs the standard library alone, so that anybody can use it."""

import json
import subprocess
import sys
from pathlib import Path

import transformer_elmo
from transformer_elmo.pretrained.legacy import modernize

PROGRAM = """
import importlib.abc, json, sys, types

class Refused(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top != "transformer_elmo" and top not in sys.stdlib_module_names:
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Refused())
# Without what the package itself imports.
package = types.ModuleType("transformer_elmo")
package.__path__ = [sys.argv[1]]
sys.modules["transformer_elmo"] = package

from transformer_elmo import legacy

configs = json.load(sys.stdin)
results = {name: legacy.modernize(config) for name, config in configs.items()}
try:
    legacy.apply_overrides(configs["0.9"], {"itertor": 3})
except legacy.merging.ConfigurationError as error:
    print(type(error).__module__, error)
loaded = {name for name in sys.modules if name.startswith("transformer_elmo.")}
print(sorted(name for name in loaded if not name.startswith("transformer_elmo.pretrained.legacy")))
print(json.dumps({name: [modern, [*map(str, made)]] for name, (modern, made) in results.items()}))
"""


def test_without_anything_else(old_configs):
    folder = str(Path(transformer_elmo.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, folder],
        input=json.dumps(old_configs),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    error, others, results = done.stdout.splitlines()
    assert error.startswith("transformer_elmo.errors itertor = 3: ")
    assert others == "['transformer_elmo.entry', 'transformer_elmo.errors']"
    here = {name: modernize(config) for name, config in old_configs.items()}
    assert json.loads(results) == {
        name: [modern, [*map(str, changes)]] for name, (modern, changes) in here.items()
    }
