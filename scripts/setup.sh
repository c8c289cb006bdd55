#!/bin/sh
# Makes .venv with everything in requirements/dev.txt (hashes checked), Shoal itself as an
# editable install, and the console's browser libraries from package-lock.json.
# Safe to run again: a step whose inputs have not changed is skipped (.stamps/).
#
#   PYTHON=python3.12   the interpreter to build .venv with (3.11 or later)
#   SHOAL_NO_UV=1       use venv and pip although uv is installed
set -eu
cd "$(dirname "$0")/.."
mkdir -p .stamps

say() { printf '  %s\n' "$*"; }
stop() { printf '\nmake setup: %s\n' "$1" >&2; shift; for line; do printf '    %s\n' "$line" >&2; done; exit 1; }

# done_with NAME FILE...: true when step NAME was last run with these very files
stamp_of() { cat "$@" 2>/dev/null | sha256sum | cut -d' ' -f1; }
done_with() { name=$1; shift; [ "$(cat ".stamps/$name" 2>/dev/null)" = "$(stamp_of "$@")" ]; }
stamp() { name=$1; shift; stamp_of "$@" > ".stamps/$name"; }

# ---------------------------------------------------------------- which Python, which installer
find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}
python=$(find_python)
[ -n "$python" ] || stop "Shoal needs Python 3.11 or later${PYTHON:+; PYTHON=$PYTHON is not}. On Debian or Ubuntu:" \
    "sudo apt-get install -y python3 python3-venv"

uv=
if [ -z "${SHOAL_NO_UV:-}" ] && command -v uv >/dev/null; then
    uv=uv
fi

# uv does not read pip's configuration: where pip has an index configured, pass it to uv.
pip_setting() { # pip_setting ENVIRONMENT_NAME key
    eval "value=\${PIP_$1:-}"
    [ -n "$value" ] || value=$("$python" -m pip config get "global.$2" 2>/dev/null || true)
    echo "$value"
}
adopt_pip_configuration() {
    if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
        value=$(pip_setting INDEX_URL index-url); [ -z "$value" ] || export UV_DEFAULT_INDEX="$value"
    fi
    if [ -z "${UV_INDEX:-}${UV_EXTRA_INDEX_URL:-}" ]; then
        # "unsafe" only without hashes: here every file is pinned by its hash.
        value=$(pip_setting EXTRA_INDEX_URL extra-index-url)
        [ -z "$value" ] || export UV_EXTRA_INDEX_URL="$value" UV_INDEX_STRATEGY=unsafe-best-match
    fi
    if [ -z "${UV_FIND_LINKS:-}" ]; then
        value=$(pip_setting FIND_LINKS find-links)
        [ -z "$value" ] || UV_FIND_LINKS=$(echo "$value" | tr ' ' ',') && export UV_FIND_LINKS
    fi
    if [ -z "${SSL_CERT_FILE:-}" ]; then
        value=$(pip_setting CERT cert); [ -z "$value" ] || export SSL_CERT_FILE="$value"
    fi
}

# ---------------------------------------------------------------- .venv
# An environment knows its own folder by name: one that was copied or moved is made anew.
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    { [ -f .stamps/place ] && [ "$(cat .stamps/place)" != "$PWD" ]; }; then
    rm -rf .venv .stamps/packages .stamps/shoal
    if [ -n "$uv" ]; then
        say "environment: .venv with uv"
        uv venv --quiet --python "$python" .venv
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

if ! done_with packages requirements/dev.txt; then
    say "packages: $(grep -c '^[a-z0-9]' requirements/dev.txt) pinned by hash in requirements/dev.txt (a minute or two)"
    if [ -n "$uv" ]; then
        adopt_pip_configuration
        VIRTUAL_ENV=.venv uv pip sync --quiet --require-hashes requirements/dev.txt
    else
        [ -x .venv/bin/pip ] || .venv/bin/python -m ensurepip --default-pip >/dev/null
        .venv/bin/python -m pip install -qq --disable-pip-version-check --no-warn-script-location \
            --require-hashes --requirement requirements/dev.txt
    fi
    rm -f .stamps/shoal
    stamp packages requirements/dev.txt
fi

if ! done_with shoal pyproject.toml; then
    say "shoal: editable install"
    if [ -n "$uv" ]; then
        VIRTUAL_ENV=.venv uv pip install --quiet --no-deps --no-build-isolation --editable .
    else
        .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps \
            --no-build-isolation --editable .
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
