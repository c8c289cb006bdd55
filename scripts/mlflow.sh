#!/bin/sh
# Makes the environment of the MLflow server that tests/mlflow start (requirements/mlflow.txt, hashes
# checked), and prints its folder. It is 200 MB, so all checkouts of a user share it, in the user's
# cache folder. Safe to run again: nothing is done twice.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh

stamp=$(sha256sum requirements/mlflow.txt | cut -c1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/shoal
mkdir -p "$cache"
exec 9> "$cache/mlflow.lock"
flock 9 # several tests begin with this at once
if [ ! -e "$cache/mlflow-$stamp/ready" ]; then
    rm -rf "$cache"/mlflow-*
    install_locked "$cache/mlflow-$stamp" requirements/mlflow.txt >&2
    "$cache/mlflow-$stamp/bin/python" -m compileall -q "$cache/mlflow-$stamp/lib" >&2 || true # 40 s of the first start
    touch "$cache/mlflow-$stamp/ready"
fi
echo "$cache/mlflow-$stamp"
