#!/bin/sh
# Installs the programs that some tests drive for real: scripts/apt.sh mosquitto chromium prometheus
# Debian and Ubuntu only. Where it cannot, it says what to type and goes on: the tests that need
# the missing program skip themselves and name it.
#
# Debian's packages of mosquitto and prometheus would start a server, and again at every boot. That
# is not wanted for tests, so no service is started or left enabled.
set -eu
PATH="$PATH:/usr/sbin:/sbin"
policy=/usr/sbin/policy-rc.d

missing=
for program in "$@"; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
    as_root="sudo -n"
    if ! command -v apt-get >/dev/null || ! sudo -n true 2>/dev/null; then
        echo "  not here, and not mine to install:$missing. Their tests are skipped. On Debian or Ubuntu:"
        echo "      sudo apt-get install -y --no-install-recommends$missing"
        exit 0
    fi
elif ! command -v apt-get >/dev/null; then
    echo "  not here, and there is no apt-get:$missing. Their tests are skipped until you install them."
    exit 0
fi

install() { # shellcheck disable=SC2086  # a list of words
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $missing >"$log" 2>&1
}

log=$(mktemp)
ours=
finish() {
    rm -f "$log"
    [ -z "$ours" ] || $as_root rm -f "$policy"
}
trap finish EXIT
trap 'exit 130' INT TERM

echo "  from apt:$missing (no service is started)"
if [ ! -e "$policy" ]; then
    ours=yes
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi
# A fresh machine has no package lists, an old one has stale ones: only then are they fetched.
if ! install && ! { $as_root apt-get update -qq >"$log" 2>&1 && install; }; then
    echo "  apt could not install:$missing. Their tests are skipped. Output of apt:"
    tail -n 5 "$log" | sed 's/^/      /'
    exit 0
fi
for service in mosquitto prometheus; do
    case "$missing" in
    *$service*) [ ! -d /run/systemd/system ] || $as_root systemctl --quiet disable "$service" 2>/dev/null || true ;;
    esac
done
