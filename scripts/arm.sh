#!/bin/sh
# Runs the agent's core on an emulated 64-bit ARM: Debian's arm64 Python and the locked aarch64
# wheels under qemu-user, in build/arm. Needs apt (nothing is installed, packages are only
# unpacked there) and pip. Says plainly what is missing where it cannot be.
set -eu
cd "$(dirname "$0")/.."

here=$PWD/build/arm
foreign="python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 \
    zlib1g libssl3 libffi8 libsqlite3-0 libexpat1 liblzma5 libbz2-1.0 libuuid1 libdb5.3 libcrypt1 \
    libncursesw6 libtinfo6 libreadline8 libnsl2 libtirpc3 libcom-err2 libk5crypto3 libkrb5-3 \
    libkrb5support0 libgssapi-krb5-2 libkeyutils1"

cannot() { echo "make arm: cannot run here: $*" >&2; exit 3; }

command -v apt-get >/dev/null || cannot "no apt-get; any aarch64 machine runs tests/arm/core.py itself"
mkdir -p "$here/apt/lists/partial" "$here/apt/cache/archives/partial" "$here/debs"

# An apt of our own beside the system's, for another architecture: its sources, our state.
for_arm() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 \
        -o Dir::State::lists="$here/apt/lists" -o Dir::Cache="$here/apt/cache" \
        -o Dir::State::status=/dev/null -o APT::Sandbox::User=root "$@"
}

if [ ! -x "$here/root/usr/bin/python3.11" ]; then
    for_arm update || cannot "apt gives no list of arm64 packages"
    (cd "$here/debs" && for_arm download $foreign) || cannot "apt gives no arm64 packages"
    (cd "$here/debs" && apt-get -qq download qemu-user-static) || cannot "apt gives no qemu-user-static"
    for deb in "$here"/debs/*_arm64.deb; do dpkg -x "$deb" "$here/root"; done
    dpkg -x "$here"/debs/qemu-user-static_*.deb "$here/qemu"
fi

# qemu opens a file below its prefix before the machine's own: onnxruntime must not find the caches
# of this machine's CPU where it looks for those of a Raspberry Pi 4.
board() {
    cpus=$here/root/sys/devices/system/cpu
    mkdir -p "$cpus" "$here/root/proc"
    for list in possible present online; do echo 0-3 > "$cpus/$list"; done
    echo 3 > "$cpus/kernel_max"
    for n in 0 1 2 3; do
        cache "$cpus/cpu$n/cache/index0" 1 32K Data "$n"
        cache "$cpus/cpu$n/cache/index1" 1 48K Instruction "$n"
        cache "$cpus/cpu$n/cache/index2" 2 1024K Unified 0-3
        mkdir -p "$cpus/cpu$n/topology"
        echo "$n" > "$cpus/cpu$n/topology/core_id"
        echo 0 > "$cpus/cpu$n/topology/physical_package_id"
        echo 0-3 > "$cpus/cpu$n/topology/core_siblings_list"
        printf 'processor\t: %s\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd crc32 cpuid\n' "$n"
        printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n'
        printf 'CPU part\t: 0xd08\nCPU revision\t: 3\n\n'
    done > "$here/root/proc/cpuinfo"
}

cache() {
    mkdir -p "$1"
    echo "$2" > "$1/level"; echo "$3" > "$1/size"; echo "$4" > "$1/type"; echo "$5" > "$1/shared_cpu_list"
}

board
mkdir -p "$here/wheels" "$here/site"
.venv/bin/python -m pip --quiet --quiet download --only-binary=:all: --no-deps --require-hashes \
    --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    --dest "$here/wheels" -r requirements/agent.txt || cannot "the index has not every aarch64 wheel"
for wheel in "$here"/wheels/*.whl; do .venv/bin/python -m zipfile -e "$wheel" "$here/site"; done

PYTHONPATH=tests .venv/bin/python tests/arm/core.py write "$here/golden"
qemu=$here/qemu/usr/bin/qemu-aarch64-static
PYTHONPATH="$here/site:shared:agent" PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1 \
    OPENBLAS_NUM_THREADS=1 QEMU_LD_PREFIX="$here/root" PYTHONHOME="$here/root/usr" \
    "$qemu" -cpu cortex-a72 "$here/root/usr/bin/python3.11" tests/arm/core.py check "$here/golden"
