"""A memfd for the request of a child process: complete before the child starts, never on disk."""

import os
from typing import BinaryIO


def memory_file(data: bytes = b"") -> BinaryIO:
    """A file in memory that a child process reads from its start.

    Through a pipe a request can be lost: Popen.communicate that timed out before a slow child had
    read it does not send the rest when it is called again, and child and parent wait forever.
    A file on disk would leave secrets there.
    """
    file = os.fdopen(os.memfd_create("request"), "w+b")
    file.write(data)
    file.seek(0)
    return file
