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
export A="b"

nvidia-smi
stop_on_failure
source "/users/$USER/venv/bin/activate"
stop_on_failure
unset MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
stop_on_failure
python train.py --rate 0.1 --name 'it'"'"'s' && ls *.pt > list.txt
stop_on_failure
