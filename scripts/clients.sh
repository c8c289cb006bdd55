#!/bin/sh
# Makes .venv-clients with KServe's and Triton's clients (requirements/clients.txt, hashes checked),
# for tests/adapters/serving/test_foreign_clients.py. Safe to run again: nothing is done twice.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh

mkdir -p .stamps
exec 9> .stamps/clients.lock
flock 9 # several tests begin with this at once
stamp=$(sha256sum requirements/clients.txt | cut -d' ' -f1)
[ "$(cat .venv-clients/stamp 2>/dev/null)" != "$stamp" ] || exit 0
rm -rf .venv-clients
install_locked .venv-clients requirements/clients.txt
echo "$stamp" > .venv-clients/stamp
