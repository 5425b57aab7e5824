#!/bin/sh
# Install Debian or Ubuntu packages that are missing, without starting or enabling what they bring.
# Where it may not (no root, no sudo without a password) it names them and fails.
set -eu

missing=
for package; do
    dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
        missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "Install what your system calls:$missing" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    # shellcheck disable=SC2086 # one word for each package
    sudo -n true 2>/dev/null && exec sudo -n "$0" $missing
    echo "Missing:$missing. Install by: sudo apt-get install$missing" >&2
    exit 1
fi

policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
echo "Installing:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -qq --yes --no-install-recommends -o DPkg::Lock::Timeout=120 $missing >/dev/null

command -v systemctl >/dev/null || exit 0
for package in $missing; do
    # A template unit (name@.service) is not enabled by its package.
    for unit in $(dpkg --listfiles "$package" | sed -n 's|.*/systemd/system/\([^/@]*\.service\)$|\1|p'); do
        systemctl --quiet disable "$unit"
        [ ! -d /run/systemd/system ] || systemctl stop "$unit"
    done
done
