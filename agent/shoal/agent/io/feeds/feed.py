"""Old name of shoal.agent.feeds.io.interface, kept for one version for plugins that import it."""

import warnings

from shoal.agent.feeds.io.interface import (
    Context,
    Emit,
    FeedSettings,
    ServerSettings,
    Sink,
    Source,
    Tally,
    Touched,
)

__all__ = [
    "Context",
    "Emit",
    "FeedSettings",
    "ServerSettings",
    "Sink",
    "Source",
    "Tally",
    "Touched",
]

warnings.warn(
    f"{__name__} is removed in the next version: import shoal.agent.feeds.io.interface",
    DeprecationWarning,
    stacklevel=2,
)
