"""Port: downloads and TUF metadata over the network."""

from typing import Protocol

from shoal.agent.host.downloads import Downloads


class Network(Downloads, Protocol):
    """The artifact server: update.io.download.HttpsDownloads, or a fake."""

    def metadata(self, name: str) -> bytes: ...
