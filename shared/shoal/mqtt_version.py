"""Differences between MQTT 3.1.1 and MQTT 5 on one connection.

A persistent session is the same in both: clean session off in 3.1.1 is clean start off in 5, with
a session that never expires. Sources: OASIS MQTT 3.1.1, 3.1.2.4; OASIS MQTT 5.0, 3.1.2.11, 3.2.2.3.
"""

import enum
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

#: Receive maximum of QoS 1 messages in flight: towards the broker, towards the client.
IN_FLIGHT, RECEIVE_MAXIMUM = 20, 100
_NEVER_EXPIRES = 0xFFFF_FFFF
#: Reason code "unsupported protocol version" of MQTT 5; for 3.1.1 paho has an error of its own.
_UNSUPPORTED = 132


class MqttVersion(enum.Enum):
    """A version of MQTT."""

    V3 = "3.1.1"
    V5 = "5"

    @property
    def other(self) -> "MqttVersion":
        return MqttVersion.V5 if self is MqttVersion.V3 else MqttVersion.V3

    def make_client(self, name: str, *, clean: bool) -> paho.Client:
        """A paho client with the id `name` that connects with this version only."""
        return paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=name,
            clean_session=clean if self is MqttVersion.V3 else None,
            protocol=paho.MQTTv311 if self is MqttVersion.V3 else paho.MQTTv5,
            reconnect_on_failure=False,  # else it falls back to MQTT 3.1 by itself
        )

    def connect_options(self, *, clean: bool) -> dict[str, Any]:
        """Arguments of paho's connect beside the address. clean: do not keep the session."""
        if self is MqttVersion.V3:
            return {}
        properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0 if clean else _NEVER_EXPIRES
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        return {"clean_start": clean, "properties": properties}


class Limits(NamedTuple):
    """Limits that an MQTT 5 broker announces in its CONNACK; 3.1.1 has none.

    in_flight   QoS 1 messages in flight
    packet      bytes of one message with its topic; 0 for unlimited
    faults      required features that the broker lacks, as text
    """

    in_flight: int = IN_FLIGHT
    packet: int = 0
    faults: tuple[str, ...] = ()


def limits_of(properties: Any, *, clean: bool) -> Limits:
    """Read the properties of a CONNACK."""
    faults = []
    if getattr(properties, "MaximumQoS", 2) < 1:
        faults.append("acknowledges no message (its maximum QoS is 0)")
    if not getattr(properties, "RetainAvailable", 1):
        faults.append("retains no messages")
    if not getattr(properties, "WildcardSubscriptionAvailable", 1):
        faults.append("takes no subscriptions with wildcards")
    if not clean and getattr(properties, "SessionExpiryInterval", _NEVER_EXPIRES) == 0:
        faults.append("keeps no sessions")
    return Limits(
        in_flight=min(IN_FLIGHT, getattr(properties, "ReceiveMaximum", IN_FLIGHT)),
        packet=getattr(properties, "MaximumPacketSize", 0),
        faults=tuple(faults),
    )


def is_unsupported(reason: Any) -> bool:
    """Whether the broker refused the protocol version."""
    return bool(reason.value == _UNSUPPORTED)


def explain_reason(reason: Any) -> str:
    """An MQTT reason code as text, with a hint where there is one."""
    hint = _HINTS.get(reason.value, "")
    return f"{reason}{'; ' if hint else ''}{hint}"


_ENROLLED = "is this device enrolled, and not decommissioned?"
#: By reason code of MQTT 5; paho translates the codes of 3.1.1.
_HINTS = {
    132: "it supports another version of MQTT",
    133: "see its limits for client ids",
    134: _ENROLLED,
    135: _ENROLLED,
    136: "it will be tried again",
    137: "it will be tried again",
    138: "see its list of banned clients",
    139: "it will be tried again",
    141: "the line is too slow, or this machine slept",
    142: "another client connected with this client id: is the agent's folder in use twice?",
    149: "raise its limit of message size",
    150: "raise its limit of messages a second",
    151: "raise its quota, or let fewer devices share it",
    152: "its administrator ended it",
    154: "use a broker that retains messages",
    155: "use a broker that grants QoS 1",
    159: "it will be tried again",
}
