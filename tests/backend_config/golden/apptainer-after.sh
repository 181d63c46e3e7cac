#!/bin/bash
exec < /dev/null 2>&1
stop_on_failure() {
  local code=$?
  [ "$code" -eq 0 ] || exit "$code"
}

export MANTIK_WORKING_DIRECTORY="$PWD"
export MLFLOW_RUN_ID=0af3
export MLFLOW_TRACKING_URI=https://example.org/tracking
export PLAIN='it'"'"'s $5'
export GREETING="say \"hi\" to $USER & co"
export RATE="7e-6"
export DEBUG="True"
export SRUN_CPUS_PER_TASK="4"

echo finished
stop_on_failure
