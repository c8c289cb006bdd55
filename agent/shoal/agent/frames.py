"""Old name of shoal.agent.feeds.frames, kept for one version for plugins that import it."""

import warnings

from shoal.agent.feeds.frames import FeedHealth, Frame, Prediction, Quality, Value, frame_of
from shoal.agent.feeds.frames import LatestValues as Latest

__all__ = ["FeedHealth", "Frame", "Latest", "Prediction", "Quality", "Value", "frame_of"]

warnings.warn(
    f"{__name__} is removed in the next version: import shoal.agent.feeds.frames",
    DeprecationWarning,
    stacklevel=2,
)
