"""Port: downloads and TUF metadata over the network."""

from typing import Protocol

from shoal.agent.host.downloads import Downloads


class Network(Downloads, Protocol):
    """What is fetched from otherwise: io.download.HttpsDownloads, or the like."""

    def metadata(self, name: str) -> bytes: ...
