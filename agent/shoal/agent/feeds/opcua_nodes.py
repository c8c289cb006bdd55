"""Ids of OPC UA nodes as text, with their namespace by URI or by index. Pure.

A server may number its namespaces anew at each start; their URIs are stable. So an id with a URI is
resolved at every connection. Source: OPC UA part 6, 5.3.1.11 (ExpandedNodeId as text).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from shoal.errors import SettingError

_NODE = re.compile(
    r"(?:nsu=(?P<uri>[^;]+);|ns=(?P<index>\d{1,5});)?"
    r"(?P<id>i=\d{1,10}|s=.+|g=[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}|b=.+)",
    re.DOTALL,
)


class NodeRef(NamedTuple):
    """uri: of the namespace, or "" and its number (index) on the server; id: "s=Press.T"."""

    uri: str
    number: int
    id: str

    @property
    def is_by_index(self) -> bool:
        """Whether its meaning depends on how the server numbers its namespaces: 0 is fixed."""
        return not self.uri and self.number > 0

    def text(self, namespaces: Sequence[str]) -> str:
        """Its id on a server with these namespaces; ValueError, with the reason, without one.

        >>> parse_node("nsu=urn:plant;s=Press.T").text(["", "urn:plant"])
        'ns=1;s=Press.T'
        """
        if not self.uri:
            return f"ns={self.number};{self.id}"
        if self.uri not in namespaces:
            known = ", ".join(namespaces[1:])
            raise ValueError(f"the server has no namespace {self.uri!r}, but {known or 'none'}")
        return f"ns={namespaces.index(self.uri)};{self.id}"

    def by_uri(self, namespaces: Sequence[str]) -> str:
        """How to write it with the URI that its index has on this server; "" if it has none.

        >>> parse_node("ns=1;i=7").by_uri(["", "urn:a;b"])
        'nsu=urn:a%3Bb;i=7'
        """
        if self.number >= len(namespaces):
            return ""
        uri = namespaces[self.number].replace("%", "%25").replace(";", "%3B")
        return f"nsu={uri};{self.id}"


def parse_node(text: str) -> NodeRef:
    """Parse "nsu=URI;s=NAME" or "ns=INDEX;s=NAME" (or i=, g=, b=); SettingError for other text."""
    found = _NODE.fullmatch(text.strip())
    if found is None:
        raise SettingError(
            f"{text[:100]!r} is no node id", "write it as nsu=URI;s=NAME, such as nsu=urn:plant;s=T"
        )
    uri = (found["uri"] or "").replace("%3B", ";").replace("%3b", ";").replace("%25", "%")
    return NodeRef(uri, int(found["index"] or 0), found["id"])
