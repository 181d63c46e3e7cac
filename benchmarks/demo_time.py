"""How long `prefect-mantik demo` takes in a built environment, its own servers included, and that it does what it says.

python benchmarks/demo_time.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import Row, report

TARGET = 90.0

_LAST_LINE = r"demo: 3 runs at 3 sites, 3 finished, best \w+ val_loss=[\d.]+, model digits v1"


def main() -> int:
    """Run the demo once, print one line, and fail where it failed or the target is missed."""
    command = Path(sys.executable).with_name("prefect-mantik")
    began = time.monotonic()
    done = subprocess.run([command, "demo"], stdout=subprocess.PIPE, text=True, timeout=600, check=False)
    seconds = time.monotonic() - began
    last = (done.stdout.strip().splitlines() or ["nothing"])[-1]
    print(last)
    fine = done.returncode == 0 and re.fullmatch(_LAST_LINE, last) is not None
    met = fine and seconds <= TARGET
    note = "one run, its servers included" if fine else "it FAILED"
    report(Row("demo", seconds, None, None, f"<= {TARGET:.0f} s", met, "s", note))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
