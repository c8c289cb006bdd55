"""Old name of shoal.agent.feeds.io.connection, kept for one version for plugins that import it."""

import warnings

from shoal.agent.feeds.io.connection import ReconnectingFeed as Connecting
from shoal.agent.feeds.io.connection import explain

__all__ = ["Connecting", "explain"]

warnings.warn(
    f"{__name__} is removed in the next version: import shoal.agent.feeds.io.connection",
    DeprecationWarning,
    stacklevel=2,
)
