# shellcheck shell=bash
# What goes to the node's own disk: the programs, what guests boot, the clients and the test images.
# Needs steps.sh and $hack.

# make_payload: sets $payload to a directory that is removed when the script ends.
make_payload() {
    # shellcheck disable=SC2154 # $hack is set by the script that sources this
    local out=$hack/../out
    "$hack/../tests/images/build" "$out/registry" || return
    payload=$(mktemp -d "$out/payload.XXXXXX") || return
    trap 'rm -rf "$payload"' EXIT
    cp -r --reflink=auto "$out"/{bin,guest,tools} "$payload/" &&
        cp -rL --reflink=auto "$out/registry" "$payload/registry"
}
