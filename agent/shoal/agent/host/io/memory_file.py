"""What a child process is asked, whole before the child is there, and nowhere but in memory."""

import os
from typing import BinaryIO


def memory_file(data: bytes = b"") -> BinaryIO:
    """A file to be read from its start by a child.

    Through a pipe a request can be lost: Popen.communicate that timed out before a slow child had
    read it does not send the rest when it is called again, and child and parent wait for ever.
    A file on disk would leave secrets there.
    """
    file = os.fdopen(os.memfd_create("request"), "w+b")
    file.write(data)
    file.seek(0)
    return file
