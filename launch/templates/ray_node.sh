# shellcheck shell=bash
# One Ray node, as a step of the Slurm job: bash -c THIS FOLDER SPILL STORE KEEP COMMAND...
# FOLDER: Ray's folder on the node. SPILL: folder for spilled objects, or empty. STORE: bytes of the object store, or 0.
# A signal USR1 or TERM stops it: srun passes USR1 on, and answers TERM with SIGKILL for the step.
# KEEP: if this file exists when the node is told to stop, FOLDER stays, because it has Ray's logs.
folder="$0" spill="$1" store="$2" keep="$3"
shift 3
ulimit -Sn "$(ulimit -Hn)" 2>/dev/null || true
ulimit -Sl "$(ulimit -Hl)" 2>/dev/null || true
mkdir -m 700 -- "$folder" || exit
options=()
if [[ -n "$spill" ]]; then
  mkdir -m 700 -- "$spill" || exit
  options+=(--object-spilling-directory="$spill")
fi
if ((store > 0)); then
  # If the store is larger than /dev/shm, Ray moves it to the disk.
  room="$(df -B1 --output=avail /dev/shm | tail -n 1)"
  if ((store > room * 95 / 100)); then store=$((room * 95 / 100)); fi
  options+=(--object-store-memory="$store")
fi
ray="" remove=""
# shellcheck disable=SC2329  # the trap calls it
stop() {
  if [[ ! -e "$keep" ]]; then remove=yes; fi
  if [[ -n "$ray" ]]; then kill -TERM "$ray" 2>/dev/null; fi
}
# shellcheck disable=SC2329
cancelled() {
  stop
  # Slurm also ends srun, which then kills this step: there is no time to wait for Ray.
  if [[ -n "$remove" ]]; then rm -rf -- "$folder" ${spill:+"$spill"}; fi
}
trap stop USR1
trap cancelled TERM
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
if [[ -n "$remove" ]]; then rm -rf -- "$folder" ${spill:+"$spill"}; fi
exit "$status"
