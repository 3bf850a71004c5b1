#!/bin/bash
# One Ray node, as a step of the Slurm job: ray_node.sh FOLDER SPILL MEMORY CPUS KEEP COMMAND...
# FOLDER: Ray's folder on the node. SPILL: folder for spilled objects, or empty. MEMORY: bytes of the job on this node, or
# 0 if Slurm does not divide memory. CPUS: the job's CPUs on this node, or 0 for all.
# A signal USR1 or TERM stops it: srun passes USR1 on, and answers TERM with SIGKILL for the step.
# KEEP: if this file exists when the node is told to stop, FOLDER stays, because it has Ray's logs. FOLDER also stays if
# Ray ends by itself. Otherwise Slurm's epilog of the task removes FOLDER, also after SIGKILL.
folder="$1" spill="$2" memory="$3" cpus="$4" keep="$5"
shift 5
ulimit -Sn "$(ulimit -Hn)" 2>/dev/null || true
ulimit -Sl "$(ulimit -Hl)" 2>/dev/null || true

# Folders of earlier jobs whose epilog did not run, for example because the node was restarted. No process has their lock.
for old in /tmp/grpo-*-*-*; do
  if [[ ! -O "$old" || ! -f "$old/lock" || -e "$old/kept" ]] || ! flock -n "$old/lock" true; then continue; fi
  old_spill="$(< "$old/lock")"
  rm -rf -- "$old" ${old_spill:+"$old_spill"} || true
done
mkdir -m 700 -- "$folder" || exit
# All processes of this node have the lock. The file gets its name afterwards, so that nobody sees it without a lock.
printf '%s' "$spill" > "$folder/new_lock" || exit
exec 9< "$folder/new_lock"
if flock 9; then mv -- "$folder/new_lock" "$folder/lock"; fi
options=()
if [[ -n "$spill" ]]; then
  mkdir -m 700 -- "$spill" || exit
  options+=(--object-spilling-directory="$spill")
fi

# Ray reads the memory of the machine, which is more than the memory of the job.
machine=$(($(awk '$1 == "MemTotal:" { print $2 }' /proc/meminfo) * 1024))
if ((memory == 0)); then
  # Slurm gives every job all memory of the node. A part for each CPU leaves something for the other jobs.
  memory="$machine"
  all="$(nproc --all)"
  if ((cpus > 0 && cpus < all)); then memory=$((machine * cpus / all)); fi
fi
while IFS=: read -r _ controllers group; do
  case "$controllers" in
    "") at="/sys/fs/cgroup$group" file=memory.max ;;
    memory) at="/sys/fs/cgroup/memory$group" file=memory.limit_in_bytes ;;
    *) continue ;;
  esac
  while [[ "$at" == /sys/fs/cgroup* ]]; do
    limit="$(cat "$at/$file" 2>/dev/null || true)"
    if [[ "$limit" =~ ^[0-9]{1,18}$ ]] && ((limit < memory)); then memory="$limit"; fi
    at="${at%/*}"
  done
done < /proc/self/cgroup
if ((memory > machine)); then memory="$machine"; fi
# 30 % are for objects, as Ray divides it. If the store is larger than /dev/shm, Ray moves it to the disk, which is slow.
# Ray refuses a store that is as small as the /dev/shm of some containers.
store=$((memory * 3 / 10))
room="$(df -B1 --output=avail /dev/shm | tail -n 1)"
if ((room > 268435456 && store > room * 95 / 100)); then store=$((room * 95 / 100)); fi
echo "grpo: the job has $((memory / 1048576)) MiB of memory on ${SLURMD_NODENAME:-this node}; Ray keeps objects in $((store / 1048576)) MiB of it"
options+=(--memory=$((memory * 7 / 10)) --object-store-memory="$store")

ray="" stopped=""
# shellcheck disable=SC2329  # the trap calls it
stop() {
  stopped=yes
  if [[ -e "$keep" ]]; then touch -- "$folder/kept"; fi
  if [[ -n "$ray" ]]; then kill -TERM "$ray" 2>/dev/null; fi
}
trap stop USR1 TERM
(
  # The signal may reach all processes of the step.
  trap '' USR1
  exec "$@" "${options[@]}"
) &
ray=$!
wait "$ray"
status=$?
# A signal interrupts `wait`.
while kill -0 "$ray" 2>/dev/null; do
  wait "$ray"
  status=$?
done
# Slurm signals all processes of a cancelled step, so Ray may end before this shell gets the signal.
if [[ -z "$stopped" ]]; then sleep 1; fi
if [[ -z "$stopped" ]]; then touch -- "$folder/kept"; fi
exit "$status"
