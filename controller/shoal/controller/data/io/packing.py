"""Uploads of images, audio and tensors become their stored form in a child process with limits.

    python -m shoal.controller.data.io.packing    a Request on stdin, an Answer on stdout

An archive of a few bytes can unpack to terabytes, an image of a few kilobytes to gigabytes; the
child ends then, and the caller has a DatasetError. The child has no secrets: two paths, no more.
"""

import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from shoal.controller.data.item_labels import Roles
from shoal.controller.data.records import Packed
from shoal.errors import DatasetError, ShoalError
from shoal.validation_errors import decode_errors_as

#: CPU seconds, and MB of memory, that an upload may take; bytes of its stored form.
CPU_S, DATA_MB, FILE_LIMIT = 600, 1024, 9 << 30
#: Wall seconds for each CPU second.
_WALL = 2
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LANG")
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """As `pack_items`."""

    path: str
    target: str
    source: str
    kind: str
    roles: Roles
    drop: list[str]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What was packed, or the error with its hint."""

    packed: Packed | None = None
    error: str = ""
    hint: str = ""


def pack_items(
    path: Path, target: Path, source: str, kind: str, roles: Roles, drop: Sequence[str]
) -> Packed:
    """Write the stored form of the archive or file of arrays at `path` to `target`.

    source   what messages call the upload
    kind     "images", "audio", "tensors", or "" to find out
    drop     arrays that are left out

    DatasetError, naming `source`, for what cannot be a dataset or meets a limit.
    """
    request = Request(
        path=str(path), target=str(target), source=source, kind=kind, roles=roles, drop=list(drop)
    )
    child = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, str(CPU_S), str(DATA_MB), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={
            name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ
        },
    )
    with child:
        try:
            output, _ = child.communicate(msgspec.json.encode(request), timeout=_WALL * CPU_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise _too_much(source, f"{_WALL * CPU_S} s") from None
    if child.returncode == -signal.SIGXCPU:
        raise _too_much(source, f"{CPU_S} s of CPU")
    if child.returncode or not output:
        raise _too_much(source, f"{DATA_MB} MB of memory")
    with decode_errors_as(lambda cause: DatasetError(f"{source}: reading it: {cause}")):
        answer = msgspec.json.decode(output, type=Answer)
    if answer.packed is None:
        raise DatasetError(answer.error, answer.hint)
    return answer.packed


def _too_much(source: str, what: str) -> DatasetError:
    return DatasetError(
        f"{source} takes more than {what} to read", "add it as several smaller datasets"
    )


def main() -> None:
    """The child: limits first, then the file."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    cpu_s, data_mb, parent = map(int, sys.argv[1:])
    if os.getppid() != parent:
        os._exit(0)
    resource.setrlimit(resource.RLIMIT_DATA, (data_mb << 20, data_mb << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    try:
        answer = Answer(packed=_pack(request))
    except MemoryError:
        os._exit(3)
    except ShoalError as error:
        answer = Answer(error=error.message, hint=error.hint)
    except OSError as error:
        answer = Answer(error=f"{request.source}: {error.strerror}", hint="free some disk space")
    except Exception as error:  # noqa: BLE001 a bug of a library refuses one upload, no more
        answer = Answer(error=f"{request.source}: {type(error).__name__}: {error!s:.300}")
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    sys.stdout.flush()
    os._exit(0)


def _pack(request: Request) -> Packed:
    from shoal.controller.data.io.pack_build import build_pack
    from shoal.controller.data.tensor_packs import pack_tensors
    from shoal.controller.data.uploads import is_arrays

    path, target = Path(request.path), Path(request.target)
    if request.kind == "tensors" or (not request.kind and is_arrays(path)):
        return pack_tensors(path, target, request.source, request.roles, request.drop)
    return build_pack(path, target, request.source, request.kind, request.roles)


if __name__ == "__main__":
    main()
