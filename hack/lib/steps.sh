# shellcheck shell=bash
# Timed steps: what a script is doing, how long it took, and on failure why.
#
# Progress goes to standard error, so that standard output stays the result of the command a person asked for.

# The time since the machine started, in milliseconds; immune to clock changes.
now_ms() {
    local up rest
    read -r up rest </proc/uptime
    echo $((10#${up/./} * 10))
}

# seconds_since START_MS: "12.34" for printing.
seconds_since() {
    local ms=$(($(now_ms) - $1))
    printf '%d.%02d' $((ms / 1000)) $((ms % 1000 / 10))
}

say() { printf '%s\n' "$*" >&2; }

# fail MESSAGE…: one clear line, exit status 1.
fail() {
    say "${0##*/}: $*"
    exit 1
}

# step NAME LOG CMD…: runs CMD with its output in LOG. What takes longer than two seconds is announced, and told with the time
# it took; what has nothing to do stays silent. When CMD fails, the end of LOG follows and CMD's exit status is returned.
# CMD should be a program: errexit does not hold in a shell function whose status is tested.
step() {
    local name=$1 log=$2 start announced='' ended status=0
    shift 2
    mkdir -p "$(dirname "$log")"
    start=$(now_ms)
    exec {ended}< <(
        status=0
        "$@" >"$log" 2>&1 </dev/null || status=$?
        echo "$status"
    )
    if ! read -r -t 2 -u "$ended" status; then
        say "  … $name"
        announced=yes
        # No word at all: CMD's shell was killed.
        read -r -u "$ended" status || status=125
    fi
    exec {ended}<&-
    if ((status)); then
        say "  ✗ $name failed after $(seconds_since "$start") s with status $status; the end of $log:"
        tail -n 40 "$log" | sed 's/^/    │ /' >&2
        return "$status"
    fi
    [[ -z $announced ]] || say "  ✓ $name ($(seconds_since "$start") s)"
}
