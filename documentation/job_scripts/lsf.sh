#!/bin/bash
# One fold on one or several hosts:   bsub < lsf.sh
# All folds, a job for each:          bsub -J "finetune[1-5]" < lsf.sh
# Only print the commands:            DRY_RUN=1 bash lsf.sh
# A job that reaches its time limit saves, goes back into the queue and continues.
#BSUB -J finetune
#BSUB -n 32
#BSUB -R "span[ptile=16]"         # slots of a host: 32 of them are two hosts
#BSUB -gpu "num=4"                # on each host
#BSUB -W 24:00
#BSUB -wa USR1                    # the warning ...
#BSUB -wt 5                       # ... that many minutes before the limit
#BSUB -r                          # again, if a host fails
#BSUB -Q 75                       # again, if stopped: 0 is finished, 75 can be continued, anything else is an error
#BSUB -o finetune_%J_%I.log
set -euo pipefail

# ---- yours
DATASET=999
CONFIGURATION=3d_fullres
PLANS=ptPlans__MAE____Spacing__1.00_1.00_1.00___Norm__Z
FOLD=0                            # an array's jobs take their index less one, which begins at 1
GPUS_PER_HOST=4
SECONDS_TO_MEET=600               # that a host waits for those that start later
TRAINING_ARGUMENTS=()             # more of nnUNetv2_train_pretrained, as (-r short --npz)
# source /path/to/venv/bin/activate
# export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...
# ----

job="${LSB_JOBID:-0}"
index="${LSB_JOBINDEX:-0}"
if ((index > 0)); then
    FOLD=$((index - 1))
fi
# each host once: LSB_HOSTS has one entry for each slot, LSB_MCPU_HOSTS (of long lists, too) "host slots host slots ..."
read -r -a slots <<<"${LSB_HOSTS:-}"
if ((${#slots[@]} == 0)); then
    read -r -a pairs <<<"${LSB_MCPU_HOSTS:-$(hostname) 1}"
    for ((i = 0; i < ${#pairs[@]}; i += 2)); do
        slots+=("${pairs[i]}")
    done
fi
hosts=()
for host in "${slots[@]}"; do
    if [[ " ${hosts[*]-} " != *" $host "* ]]; then
        hosts+=("$host")
    fi
done

# Always --c: a training without a checkpoint begins anew and says so.
launcher=(
    nnUNetv2_torchrun_pretrained
    --nnodes "${#hosts[@]}" --nproc_per_node "$GPUS_PER_HOST"
    --rdzv_backend c10d --rdzv_endpoint "${hosts[0]}:$((15000 + (10 * job + index) % 15000))" --rdzv_id "$job-$index"
    --rdzv_conf "join_timeout=$SECONDS_TO_MEET"
    -m nnunetv2_ext.cli.train_pretrained
    -d "$DATASET" -c "$CONFIGURATION" -f "$FOLD" -p "$PLANS" --c
    ${TRAINING_ARGUMENTS[@]+"${TRAINING_ARGUMENTS[@]}"}
)
others=(blaunch -z "${hosts[*]:1}" "${launcher[@]}")
if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "${launcher[@]}"
    echo
    if ((${#hosts[@]} > 1)); then
        printf '%q ' "${others[@]}"
        echo
    fi
    exit 0
fi

# The first host's launcher runs here, so that it gets the signals; one launcher's signal stops the training on all
# hosts. blaunch must not end by them before. LSF itself sends USR2 at the limit; it means the same.
if ((${#hosts[@]} > 1)); then
    (
        trap '' USR1 USR2 INT TERM
        exec "${others[@]}"
    ) &
fi
(
    trap '' USR2
    exec "${launcher[@]}"
) &
first=$!
signalled=
trap 'signalled=yes; kill -USR1 "$first" 2>/dev/null || true' USR1 USR2 INT TERM
code=0
wait "$first" || code=$?
while [[ -n "$signalled" ]]; do # a signal ends `wait`, not the launcher
    signalled=
    code=0
    wait "$first" || code=$?
done
wait || true
exit "$code"
