#!/bin/sh
# Writes requirements/*.txt: one universal, hashed lock per kind of machine (x86-64 and aarch64,
# Python 3.11 and later). No index or download address is written: where packages come from is
# the machine's own configuration. Arguments go to uv, e.g. `--upgrade`.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh

[ -n "$uv" ] || { echo "make lock needs uv, which make setup puts into .venv" >&2; exit 1; }
adopt_pip_configuration

compile() {
    target=$1
    shift
    "$uv" pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
        --output-file "requirements/$target.txt" "$@"
    echo "requirements/$target.txt: $(grep -c '^[a-z0-9]' "requirements/$target.txt") packages"
}

# dev.txt first: the smaller locks are cut from it, so every machine runs the versions tested.
compile dev --all-extras "$@"
compile agent --extra agent --constraint requirements/dev.txt "$@"
compile controller --extra controller --extra cli --extra broker \
    --constraint requirements/dev.txt "$@"

# What tests run that is no part of Shoal, so no constraint of ours: clients of the protocol
# (scripts/clients.sh), an MLflow server (scripts/mlflow.sh), converters, and wheels with ONNX files in them (scripts/models.sh).
apart() {
    target=$1
    shift
    "$uv" pip compile "requirements/$target.in" --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
        --output-file "requirements/$target.txt" "$@"
    echo "requirements/$target.txt: $(grep -c '^[a-z0-9]' "requirements/$target.txt") packages"
}

apart clients "$@"
apart converters "$@"
apart models --no-deps "$@"
apart mlflow "$@"
