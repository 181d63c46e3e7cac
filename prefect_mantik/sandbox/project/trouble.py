"""Ways for a job to go wrong, for tests and demonstrations."""

from __future__ import annotations

import os
import signal
import sys

import mlflow


def main() -> None:
    """Start the MLflow run, then do what the first argument says."""
    what = sys.argv[1]
    run = mlflow.start_run()
    print(f"{what}: run {run.info.run_id}", flush=True)
    if what == "fail":
        sys.stdout.flush()
        os._exit(int(sys.argv[2]))  # like a crash: MLflow has no chance to close the run
    elif what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "chatter":
        for number in range(int(sys.argv[2])):
            print(f"line {number} " + "." * 100)
    mlflow.end_run()


if __name__ == "__main__":
    main()
