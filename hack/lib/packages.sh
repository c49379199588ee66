# shellcheck shell=bash
# Distribution packages that a script needs: installed when missing, silent when present.
# Needs steps.sh.

# require_packages NAME…: makes sure that each Debian package is installed.
require_packages() {
    local missing=() name
    for name; do
        [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$name" 2>/dev/null) == ii* ]] || missing+=("$name")
    done
    ((${#missing[@]})) || return 0
    [[ $EUID == 0 ]] || fail "needs these packages and is not root to install them: apt-get install ${missing[*]}"
    refresh_package_lists_if_lacking "${missing[@]}"
    step "installing ${missing[*]}" "$(mktemp --tmpdir bulkhead-apt.XXXXXX)" install_packages "${missing[@]}" || exit 1
}

# Package lists that are too old name files that the mirror no longer has.
install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt_get install -y --no-install-recommends "$@" ||
        { apt_get update && apt_get install -y --no-install-recommends "$@"; }
}

# Somebody else may be installing packages just now.
apt_get() { apt-get -o DPkg::Lock::Timeout=600 "$@"; }

# A machine image often comes without package lists; they are fetched only when a wanted package is not known.
refresh_package_lists_if_lacking() {
    local name
    for name; do
        if ! apt-cache show "$name" >/dev/null 2>&1; then
            step 'fetching package lists' "$(mktemp --tmpdir bulkhead-apt.XXXXXX)" \
                apt_get update || exit 1
            return 0
        fi
    done
}

# debian_sources: the machine's own Debian package sources, one "deb URI SUITE COMPONENT" a line, however apt's
# configuration spells them. Other vendors' sources are left out.
debian_sources() {
    # shellcheck disable=SC2016 # apt's placeholders
    apt-get indextargets --format '$(ORIGIN) deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        sed -n 's/^Debian //p' | grep . || fail "apt's sources on this machine have no package lists of Debian"
}

# apt_access_settings: how this machine's apt reaches its sources (proxies and such), one setting a line.
apt_access_settings() {
    apt-config dump | grep -E '^Acquire::(https?|Check-(Valid-Until|Date)).* "..*";$' || true
}
