"""Old name of shoal.agent.host.faults, kept for one version for plugins that import it."""

import warnings

from shoal.agent.host.faults import Fault

__all__ = ["Fault"]

warnings.warn(
    f"{__name__} is removed in the next version: import shoal.agent.host.faults",
    DeprecationWarning,
    stacklevel=2,
)
