# shellcheck shell=bash
# What is expensive to make is made once and kept outside the checkout, under a key that is a hash of its inputs.
# Needs steps.sh.

cache_root=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}

# hash_of FILE-OR-DIRECTORY…: one key for the contents, names and executable bits of all files in them. Other bits of the
# mode depend on the umask of whoever made the clone.
hash_of() {
    local input
    for input; do
        [[ -e $input ]] || fail "cannot hash $input: it does not exist"
        (cd "$(dirname "$input")" && find "$(basename "$input")" -name __pycache__ -prune -o -type f \
            \( -perm /100 -printf 'executable %p\n' -o -true \) -exec sha256sum {} +)
    done | sort | sha256sum | cut -c1-16
}

# cached KIND KEY MAKE ARG…: prints the directory $cache_root/KIND/KEY, made by "MAKE ARG… DIRECTORY" when it is not there.
# It appears only when complete, and two callers at once make it once.
cached() {
    local kind=$1 key=$2 final lock status=0
    shift 2
    final=$cache_root/$kind/$key
    mkdir -p "$cache_root/$kind"
    exec {lock}>"$final.lock"
    flock "$lock"
    if [[ ! -d $final ]]; then
        rm -rf "$final.partial"
        mkdir "$final.partial"
        "$@" "$final.partial" >&2 || status=$?
        if ((status == 0)); then
            mv "$final.partial" "$final"
            forget_unused "$cache_root/$kind"
        else
            rm -rf "$final.partial"
        fi
    fi
    exec {lock}>&-
    ((status == 0)) || return "$status"
    touch "$final"
    echo "$final"
}

# What has not been asked for in two weeks is of inputs that are gone.
forget_unused() {
    find "$1" -mindepth 1 -maxdepth 1 -mtime +14 -exec rm -rf {} +
}
