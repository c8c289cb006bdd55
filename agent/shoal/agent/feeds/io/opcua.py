"""Source and sink `opcua`, as the package's entry points name them."""

from shoal.agent.feeds.io.opcua_sink import OpcUaSink
from shoal.agent.feeds.io.opcua_source import OpcUaSource

__all__ = ["OpcUaSink", "OpcUaSource"]
