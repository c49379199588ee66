# shellcheck shell=bash
# The toolchains that Debian 12 does not have in the versions needed: checked, never installed.
# Needs steps.sh and cache.sh, and $checkout and $hack.
# shellcheck disable=SC2154 # $checkout and $hack are set by the script that sources this

# Built dependencies are shared between clones.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache_root/target}

# require_toolchains: says everything that is missing at once, not one thing per run.
require_toolchains() {
    local missing=()
    require_rust
    require_go
    command -v gcc >/dev/null || require_packages gcc
    command -v python3 >/dev/null || require_packages python3-minimal
    ((${#missing[@]} == 0)) || fail "a toolchain is missing:$(printf '\n  - %s' "${missing[@]}")"
}

# rust-toolchain.toml names the release; rustup, where it is there, chooses it by itself.
require_rust() {
    local wanted found
    wanted=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$checkout/rust-toolchain.toml")
    if ! command -v cargo >/dev/null; then
        [[ ! -x $HOME/.cargo/bin/cargo ]] || PATH=$PATH:$HOME/.cargo/bin
    fi
    if ! found=$(cd "$checkout" && cargo --version 2>&1); then
        missing+=("Rust $wanted, with clippy and rustfmt: rustup toolchain install $wanted (cargo says: ${found##*: })")
    elif ! at_least "$wanted" "$(awk '{ print $2 }' <<<"$found")"; then
        missing+=("Rust $wanted; this is $found: rustup toolchain install $wanted")
    fi
}

require_go() {
    local wanted found
    wanted=$(awk '$1 == "go" { print $2 }' "$hack/tools/go.mod")
    if ! command -v go >/dev/null; then
        [[ ! -x /usr/local/go/bin/go ]] || PATH=$PATH:/usr/local/go/bin
    fi
    if ! found=$(go env GOVERSION 2>&1); then
        missing+=("Go $wanted or newer (for crictl and critest), in PATH or /usr/local/go")
    elif ! at_least "$wanted" "${found#go}"; then
        missing+=("Go $wanted or newer (for crictl and critest); this is $found")
    fi
}

# at_least WANTED FOUND: whether version FOUND is WANTED or newer.
at_least() { printf '%s\n' "$1" "$2" | sort -V -C; }
