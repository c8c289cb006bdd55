#!/bin/sh
# Makes .venv with everything in requirements/dev.txt (hashes checked), Shoal itself as an
# editable install, and the console's browser libraries from package-lock.json.
# Safe to run again: a step whose inputs have not changed is skipped (.stamps/).
#
# PYTHON and SHOAL_NO_UV: scripts/environment.sh
set -eu
cd "$(dirname "$0")/.."
mkdir -p .stamps
. scripts/environment.sh

say() { printf '  %s\n' "$*"; }
stop() { printf '\nmake setup: %s\n' "$1" >&2; shift; for line; do printf '    %s\n' "$line" >&2; done; exit 1; }

# done_with NAME FILE...: true when step NAME was last run with these very files
stamp_of() { cat "$@" 2>/dev/null | sha256sum | cut -d' ' -f1; }
done_with() { name=$1; shift; [ "$(cat ".stamps/$name" 2>/dev/null)" = "$(stamp_of "$@")" ]; }
stamp() { name=$1; shift; stamp_of "$@" > ".stamps/$name"; }

[ -n "$python" ] || stop "Shoal needs Python 3.11 or later${PYTHON:+; PYTHON=$PYTHON is not}. On Debian or Ubuntu:" \
    "sudo apt-get install -y python3 python3-venv"

# ---------------------------------------------------------------- .venv
# An environment knows its own folder by name: one that was copied or moved is made anew.
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    { [ -f .stamps/place ] && [ "$(cat .stamps/place)" != "$PWD" ]; }; then
    rm -rf .venv .stamps/packages .stamps/shoal
    [ "$uv" != "$PWD/.venv/bin/uv" ] || uv=
    if [ -n "$uv" ]; then
        say "environment: .venv with uv"
        "$uv" venv --quiet --python "$python" .venv
    else
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        "$python" -c 'import venv, ensurepip' 2>/dev/null || stop \
            "this Python cannot make virtual environments. On Debian or Ubuntu:" \
            "sudo apt-get install -y python3-venv      (or python$version-venv)" \
            "then run the same command again; installing uv instead works too."
        say "environment: .venv with $("$python" --version)"
        "$python" -m venv .venv
    fi
fi
echo "$PWD" > .stamps/place

# The uv that is pinned, before everything else: only its lines of the lock.
pinned_uv() {
    awk '/^uv==/ { found = 1 } found { print } found && !/\\$/ { exit }' requirements/dev.txt > .stamps/uv.txt
    pip_into .venv --require-hashes --requirement .stamps/uv.txt 2>/dev/null && [ -x .venv/bin/uv ]
}

if ! done_with packages requirements/dev.txt; then
    say "packages: $(grep -c '^[a-z0-9]' requirements/dev.txt) pinned by hash in requirements/dev.txt (a minute or two)"
    if [ -z "${SHOAL_NO_UV:-}$uv" ] && pinned_uv; then
        uv=$PWD/.venv/bin/uv
    fi
    install_locked .venv requirements/dev.txt
    rm -f .stamps/shoal
    stamp packages requirements/dev.txt
fi

if ! done_with shoal pyproject.toml; then
    say "shoal: editable install"
    if [ -n "$uv" ]; then
        VIRTUAL_ENV=.venv "$uv" pip install --quiet --no-deps --no-build-isolation --editable .
    else
        pip_into .venv --no-deps --no-build-isolation --editable .
    fi
    stamp shoal pyproject.toml
fi

# ---------------------------------------------------------------- browser libraries
vendor=controller/shoal/controller/web/static/vendor
if ! done_with browser package-lock.json scripts/setup.sh || [ ! -s "$vendor/htmx.min.js" ]; then
    command -v npm >/dev/null || stop \
        "npm fetches the console's browser libraries, and it is not here. On Debian or Ubuntu:" \
        "sudo apt-get install -y npm"
    say "browser libraries: package-lock.json into $vendor"
    npm ci --ignore-scripts --silent --no-fund --no-audit
    rm -rf "$vendor"
    mkdir -p "$vendor"
    cp node_modules/htmx.org/dist/htmx.min.js "$vendor/htmx.min.js"
    cp node_modules/idiomorph/dist/idiomorph-ext.min.js "$vendor/idiomorph-ext.min.js"
    cp node_modules/uplot/dist/uPlot.iife.min.js node_modules/uplot/dist/uPlot.min.css "$vendor/"
    for name in htmx.org idiomorph uplot; do
        cp "node_modules/$name/LICENSE" "$vendor/LICENSE-$name.txt"
    done
    stamp browser package-lock.json scripts/setup.sh
fi
