# shellcheck shell=bash
# A command of the head as a step of the Slurm job: bash -c THIS COMMAND...
# srun passes USR1 on, and answers TERM with SIGKILL for the step. So USR1 becomes TERM here.
command=""
# shellcheck disable=SC2329  # the trap calls it
stop() {
  if [[ -n "$command" ]]; then kill -TERM "$command" 2>/dev/null; fi
}
trap stop TERM USR1
(
  trap '' USR1
  exec "$0" "$@"
) &
command=$!
wait "$command"
status=$?
while kill -0 "$command" 2>/dev/null; do
  wait "$command"
  status=$?
done
exit "$status"
