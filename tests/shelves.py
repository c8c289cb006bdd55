"""Where a strategy under test keeps the updates that it compares."""

import tempfile

from shoal.controller.federated.io.round_files import FileShelf


def file_shelf(size: int) -> FileShelf:
    """An empty shelf in a temporary file, for updates of `size` elements."""
    return FileShelf(tempfile.TemporaryFile(), size)
