# Sourced by the scripts that make Python environments: which Python, and how a locked list of
# packages gets into an environment. uv does it in a tenth of pip's time; where there is none on the
# PATH, the one that requirements/dev.txt pins is put into .venv and used. pip does it where uv cannot.
#
#   PYTHON=python3.12   the interpreter to build environments with (3.11 or later)
#   SHOAL_NO_UV=1       use pip although uv is installed

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}
python=$(find_python)

uv=
if [ -z "${SHOAL_NO_UV:-}" ]; then
    if command -v uv >/dev/null; then
        uv=uv
    elif [ -x .venv/bin/uv ]; then
        uv=$PWD/.venv/bin/uv
    fi
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
        [ -z "$value" ] || { UV_FIND_LINKS=$(echo "$value" | tr ' ' ',') && export UV_FIND_LINKS; }
    fi
    if [ -z "${SSL_CERT_FILE:-}" ]; then
        value=$(pip_setting CERT cert); [ -z "$value" ] || export SSL_CERT_FILE="$value"
    fi
}

pip_into() { # pip_into ENVIRONMENT ARGUMENTS...: pip, quietly, in the environment
    into=$1
    shift
    [ -x "$into/bin/pip" ] || "$into/bin/python" -m ensurepip --default-pip >/dev/null
    "$into/bin/python" -m pip install -qq --disable-pip-version-check --no-warn-script-location \
        --no-compile "$@"
}

# install_locked ENVIRONMENT FILE: exactly the packages of FILE, hashes checked, in an environment
# that is made first where it is not there.
install_locked() {
    if [ -n "$uv" ]; then
        adopt_pip_configuration
        [ -x "$1/bin/python" ] || "$uv" venv --quiet --python "$python" "$1"
        VIRTUAL_ENV=$1 "$uv" pip sync --quiet --require-hashes "$2" && return
        echo "  uv could not; pip tries" >&2
    fi
    [ -x "$1/bin/python" ] || "$python" -m venv "$1"
    pip_into "$1" --require-hashes --requirement "$2"
}
