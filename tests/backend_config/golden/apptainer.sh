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

tar xzf code.tar.gz
cd code
stop_on_failure
type module > /dev/null 2>&1 || . /etc/profile
module load CUDA GCCcore/.11.2.0
stop_on_failure
cd $MANTIK_WORKING_DIRECTORY
stop_on_failure
for file in *.csv; do
  wc -l "$file"
done
stop_on_failure
unset MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
stop_on_failure
srun apptainer run --nv --bind $DATA:/data "image.sif" bash -c 'python train.py --rate 0.1 --name '"'"'it'"'"'"'"'"'"'"'"'s'"'"' && ls *.pt > list.txt'
stop_on_failure
ls -l
stop_on_failure
