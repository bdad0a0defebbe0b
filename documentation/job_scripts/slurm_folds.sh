#!/bin/bash
# All folds, a job on one node for each:   sbatch slurm_folds.sh
# Only print the command:                  DRY_RUN=1 bash slurm_folds.sh
# A job that reaches its time limit, or is pre-empted, saves, goes back into the queue and continues.
#SBATCH --job-name=finetune
#SBATCH --array=0-4               # the folds
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=12        # for all processes, their data loaders included
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300         # 300 s before the limit; without B:, so that srun's process gets it, not this shell
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%A_%a.log
set -euo pipefail

# ---- yours
DATASET=999
CONFIGURATION=3d_fullres
PLANS=ptPlans__MAE____Spacing__1.00_1.00_1.00___Norm__Z
FOLD="${SLURM_ARRAY_TASK_ID:-0}"
GPUS="${SLURM_GPUS_ON_NODE:-1}"
MAX_REQUEUES=50
TRAINING_ARGUMENTS=()             # more of nnUNetv2_train_pretrained, as (-r short --npz)
# source /path/to/venv/bin/activate
# export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...
# ----

# Always --c: a training without a checkpoint begins anew and says so.
command=(
    srun --nodes=1 --ntasks=1
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}
    nnUNetv2_train_pretrained
    -d "$DATASET" -c "$CONFIGURATION" -f "$FOLD" -p "$PLANS" -num_gpus "$GPUS" --c
    ${TRAINING_ARGUMENTS[@]+"${TRAINING_ARGUMENTS[@]}"}
)
if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi

trap : TERM USR1 # this shell outlives the signal, to queue the job again
code=0
"${command[@]}" || code=$?

# 0: finished. 75: stopped, can be continued. Anything else: an error, which the log shows.
if ((code == 75)); then
    # an element of an array by its index: the last one's own number means the whole array
    name="${SLURM_JOB_ID:-0}"
    if [[ -n "${SLURM_ARRAY_JOB_ID:-}" ]]; then
        name="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    fi
    state="$(scontrol show job "$name" 2>/dev/null || true)"
    if [[ "$state" == *JobState=CANCELLED* ]]; then
        echo "cancelled: not queued again" >&2
    elif ((${SLURM_RESTART_COUNT:-0} >= MAX_REQUEUES)); then
        echo "queued again $MAX_REQUEUES times: not any more" >&2
    else
        scontrol requeue "$name"
    fi
fi
exit "$code"
