#!/bin/bash
# One fold on several nodes:   sbatch slurm.sh
# All folds, a job for each:   sbatch --array=0-4 slurm.sh
# Only print the command:      DRY_RUN=1 bash slurm.sh
# A job that reaches its time limit, or is pre-empted, saves, goes back into the queue and continues.
#SBATCH --job-name=finetune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1       # the launcher; it starts one process for each GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32        # for all processes of a node, their data loaders included
#SBATCH --mem=200G
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300         # 300 s before the limit; without B:, so that srun's processes get it, not this shell
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log
set -euo pipefail

# ---- yours
DATASET=999
CONFIGURATION=3d_fullres
PLANS=ptPlans__MAE____Spacing__1.00_1.00_1.00___Norm__Z
FOLD="${SLURM_ARRAY_TASK_ID:-0}"
GPUS_PER_NODE="${SLURM_GPUS_ON_NODE:-4}"
SECONDS_TO_MEET=600               # that a node waits for those that start later
MAX_REQUEUES=50
TRAINING_ARGUMENTS=()             # more of nnUNetv2_train_pretrained, as (-r short --npz)
# source /path/to/venv/bin/activate
# export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...
# ----

nodes="${SLURM_JOB_NUM_NODES:-1}"
job="${SLURM_JOB_ID:-0}"
hosts=("$(hostname)")
if [[ -n "${SLURM_JOB_NODELIST:-}" ]]; then
    mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
fi
endpoint="${hosts[0]}:$((15000 + job % 15000))" # below the ports that the system gives to others

# Always --c: a training without a checkpoint begins anew and says so. Launchers end by themselves when one has failed.
command=(
    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=0
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}
    nnUNetv2_torchrun_pretrained
    --nnodes "$nodes" --nproc_per_node "$GPUS_PER_NODE"
    --rdzv_backend c10d --rdzv_endpoint "$endpoint" --rdzv_id "$job-${SLURM_RESTART_COUNT:-0}"
    --rdzv_conf "join_timeout=$SECONDS_TO_MEET"
    -m nnunetv2_ext.cli.train_pretrained
    -d "$DATASET" -c "$CONFIGURATION" -f "$FOLD" -p "$PLANS" --c
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
    name="$job"
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
