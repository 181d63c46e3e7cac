#!/bin/bash -l
#SBATCH --job-name=pm-1
#SBATCH --account=s123
#SBATCH --partition=normal
#SBATCH --time=0-01:30:00
#SBATCH --nodes=1
#SBATCH --ntasks=8
#SBATCH --gpus-per-node=0
#SBATCH --mem=12288M
#SBATCH --reservation=r1
#SBATCH --constraint=gpu&mem
#SBATCH --qos=high
#SBATCH --output=/scratch/ada/mantik/0af3/mantik.log
#SBATCH --error=/scratch/ada/mantik/0af3/mantik.log
#SBATCH --open-mode=append

export USER="${USER:-$(id -un)}" PATH && export HOME="${HOME:-$(eval echo "~$USER")}"
cd /scratch/ada/mantik/0af3 || exit
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
