"""Every shell script, looked over without running it."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_they_parse():
    for script in (*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"):
        done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), script
