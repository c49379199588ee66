# shellcheck shell=bash
# Waiting for a process in the background so that signals reach it.

# wait_for PID: its exit status. INT, TERM and HUP are passed on to it; it is up to the process how it ends then.
wait_for() {
    local pid=$1 status=0 name
    for name in INT TERM HUP; do
        # shellcheck disable=SC2064 # the pid as it is now
        trap "kill -$name $pid 2>/dev/null || true" "$name"
    done
    wait "$pid" || status=$?
    # A trapped signal ends `wait` before the process has ended.
    while kill -0 "$pid" 2>/dev/null; do
        status=0
        wait "$pid" || status=$?
    done
    trap - INT TERM HUP
    return "$status"
}
