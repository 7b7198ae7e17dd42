# Sourced by the launch scripts: runs a command again while its exit code says that this helps
# (ehrwear_jax/runtime/exit_codes.py).
#
#   source launch/restart.sh
#   run_until_done python -m ehrwear_jax.main ...
#
# EHRWEAR_MAX_RESTARTS (100) bounds it, EHRWEAR_RESTART_PAUSE (10) is the number of seconds between two starts.

# Whether a run that ended with this code is worth starting again: a lost process, a stop, a hanging step, a signal.
worth_restarting() {
  case "$1" in
  69 | 75 | 76) return 0 ;;
  *) [ "$1" -gt 128 ] ;;
  esac
}

run_until_done() {
  local code restarts=0
  while true; do
    code=0
    "$@" || code=$?
    if ! worth_restarting "$code"; then return "$code"; fi
    restarts=$((restarts + 1))
    if [ "$restarts" -gt "${EHRWEAR_MAX_RESTARTS:-100}" ]; then
      echo "ehrwear_jax: exit code $code after ${EHRWEAR_MAX_RESTARTS:-100} restarts, giving up" >&2
      return "$code"
    fi
    echo "ehrwear_jax: exit code $code, starting again ($restarts)" >&2
    sleep "${EHRWEAR_RESTART_PAUSE:-10}"
  done
}
