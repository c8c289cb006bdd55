"""The name in a device's certificate: the device, and which of its enrolments it is of.

A broker knows a device by its certificate's CN alone. A name that was decommissioned may enrol
anew, and the certificate of before is still valid for weeks: were the CN the same, the broker
would let that one in too. So every enrolment after a decommission has a CN of its own. The first
has the plain name: a fleet whose names are never taken again sees nothing of this.

>>> common_name("cam-a", 0), common_name("cam-a", 2)
('cam-a', 'cam-a.2')
>>> read_common_name("cam-a.2")
Named(device='cam-a', generation=2)
"""

import re
from typing import NamedTuple

from shoal.errors import SettingError
from shoal.topics import check_device

#: What X.509 allows.
LONGEST = 64
_GENERATION = re.compile(r"[1-9][0-9]{0,5}")


class Named(NamedTuple):
    """A device, and how often its name had been decommissioned when this certificate was made."""

    device: str
    generation: int


def common_name(device: str, generation: int) -> str:
    """CN of a certificate; SettingError for a name that is none, or too long to be used again."""
    check_device(device)
    name = f"{device}.{generation}" if generation else device
    if len(name) > LONGEST:
        raise SettingError(
            f"{device!r} was decommissioned, and is too long a name to tell its new certificate "
            "from the old one",
            "enrol under another name",
        )
    return name


def read_common_name(text: str) -> Named:
    """Take a CN apart; SettingError unless `common_name` makes such."""
    device, dot, number = text.partition(".")
    if dot and not _GENERATION.fullmatch(number):
        raise SettingError(f"certificate name {text[:80]!r}", "it is <device> or <device>.<number>")
    return Named(check_device(device), int(number or 0))
