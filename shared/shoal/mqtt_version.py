"""MQTT 3.1.1 and MQTT 5: what differs between them on one connection.

A persistent session means the same in both: 3.1.1's clean session off is 5's clean start off with
a session that never expires. Sources: OASIS MQTT 3.1.1, 3.1.2.4; OASIS MQTT 5.0, 3.1.2.11, 3.2.2.3.
"""

import enum
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

#: Messages of QoS 1 that may be under way at once: ours to the broker, the broker's to us.
IN_FLIGHT, TAKEN_AT_ONCE = 20, 100
_FOR_EVER = 0xFFFF_FFFF
#: The broker speaks the other version: of MQTT 5; of 3.1.1 paho tells by an error of its own.
_UNSUPPORTED = 132


class MqttVersion(enum.Enum):
    """A version of MQTT."""

    V3 = "3.1.1"
    V5 = "5"

    @property
    def other(self) -> "MqttVersion":
        return MqttVersion.V5 if self is MqttVersion.V3 else MqttVersion.V3

    def make_client(self, name: str, *, clean: bool) -> paho.Client:
        """A paho client that is called `name` and connects in this version alone."""
        return paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=name,
            clean_session=clean if self is MqttVersion.V3 else None,
            protocol=paho.MQTTv311 if self is MqttVersion.V3 else paho.MQTTv5,
            reconnect_on_failure=False,  # else it falls back to MQTT 3.1 by itself
        )

    def connect_options(self, *, clean: bool) -> dict[str, Any]:
        """What paho's connect takes beside the address; `clean`: the session is not kept."""
        if self is MqttVersion.V3:
            return {}
        asked: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        asked.SessionExpiryInterval = 0 if clean else _FOR_EVER
        asked.ReceiveMaximum = TAKEN_AT_ONCE
        return {"clean_start": clean, "properties": asked}


class Limits(NamedTuple):
    """What an MQTT 5 broker says at the greeting that it takes; 3.1.1 knows no such limits.

    in_flight   messages of QoS 1 under way at once
    packet      bytes of one message with its topic; 0 for any
    faults      what we need and it does not do, in words; () when it does all of it
    """

    in_flight: int = IN_FLIGHT
    packet: int = 0
    faults: tuple[str, ...] = ()


def limits_of(said: Any, *, clean: bool) -> Limits:
    """Read the properties of a CONNACK."""
    faults = []
    if getattr(said, "MaximumQoS", 2) < 1:
        faults.append("acknowledges no message (its maximum QoS is 0)")
    if not getattr(said, "RetainAvailable", 1):
        faults.append("retains no messages")
    if not getattr(said, "WildcardSubscriptionAvailable", 1):
        faults.append("takes no subscriptions with wildcards")
    if not clean and getattr(said, "SessionExpiryInterval", _FOR_EVER) == 0:
        faults.append("keeps no sessions")
    return Limits(
        in_flight=min(IN_FLIGHT, getattr(said, "ReceiveMaximum", IN_FLIGHT)),
        packet=getattr(said, "MaximumPacketSize", 0),
        faults=tuple(faults),
    )


def is_unsupported(reason: Any) -> bool:
    """Whether the broker refused for the version that was spoken."""
    return bool(reason.value == _UNSUPPORTED)


def explain_reason(reason: Any) -> str:
    """An MQTT reason code as text, with a hint where there is one."""
    hint = _HINTS.get(reason.value, "")
    return f"{reason}{'; ' if hint else ''}{hint}"


_ENROLLED = "is this device enrolled, and not decommissioned?"
#: By MQTT 5's numbers; paho translates those of 3.1.1 into them.
_HINTS = {
    132: "it speaks another version of MQTT",
    133: "see its limits for client ids",
    134: _ENROLLED,
    135: _ENROLLED,
    136: "it will be tried again",
    137: "it will be tried again",
    138: "see its list of banned clients",
    139: "it will be tried again",
    141: "the line is too slow, or this machine slept",
    142: "somebody else connected by this client's name: is the agent's folder in use twice?",
    149: "raise its limit of message size",
    150: "raise its limit of messages a second",
    151: "raise its quota, or let fewer devices share it",
    152: "its administrator ended it",
    154: "use a broker that retains messages",
    155: "use a broker that grants QoS 1",
    159: "it will be tried again",
}
