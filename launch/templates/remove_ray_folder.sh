#!/bin/bash
# Slurm calls this on each node after the step with Ray has ended, also if the step was killed. If the job failed, the
# folder has a file `kept`, and stays for Ray's logs. The folder for spilled objects never stays.
[[ -n "${GRPO_RAY_FOLDER:-}" && -d "$GRPO_RAY_FOLDER" ]] || exit 0
gone=()
if [[ -n "${GRPO_SPILL_FOLDER:-}" ]]; then gone+=("$GRPO_SPILL_FOLDER"); fi
if [[ ! -e "$GRPO_RAY_FOLDER/kept" ]]; then gone+=("$GRPO_RAY_FOLDER"); fi
# Processes that are ending may still write.
for _ in {1..20}; do
  rm -rf -- "${gone[@]}" 2>/dev/null && exit 0
  sleep 0.2
done
