"""Security epochs: what signed metadata of a model says about releases that must never come back.

A revocation raises the epoch of the model and lists the version. Metadata of an earlier epoch, and
what it alone lists, is refused from then on by every device that has seen a later one, whoever
signs freshness and orders. The releases that are still listed are of the new epoch without being
packed or signed one by one again.
"""

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from shoal.errors import TrustError

#: Epoch of a model of which no release was revoked.
FIRST = 1
#: Largest epoch and version, as of every whole number that is signed.
_MOST = 2**53
_FIELD = "shoal"


class SecurityEpoch(msgspec.Struct, frozen=True, kw_only=True):
    """The epoch of a model. revoked: versions that must never be installed again, ascending."""

    epoch: Annotated[int, msgspec.Meta(ge=FIRST, le=_MOST)] = FIRST
    revoked: list[Annotated[int, msgspec.Meta(ge=0, le=_MOST)]] = []

    def after(self, version: int, others: Iterable["SecurityEpoch"] = ()) -> "SecurityEpoch":
        """The next epoch, in which `version` is revoked too. others: of the model's other roles.

        >>> SecurityEpoch().after(3)
        SecurityEpoch(epoch=2, revoked=[3])
        """
        known = [self, *others]
        return SecurityEpoch(
            epoch=max(one.epoch for one in known) + 1,
            revoked=sorted({version, *(v for one in known for v in one.revoked)}),
        )


def read(fields: dict[str, Any]) -> SecurityEpoch:
    """The epoch in a role's verified metadata; TrustError for an impossible one.

    fields   that TUF does not define, of the signed part
    """
    try:
        return msgspec.convert(fields.get(_FIELD, {}), SecurityEpoch)
    except msgspec.ValidationError as error:
        raise TrustError(f"release metadata has an impossible security epoch: {error}") from error


def write(fields: dict[str, Any], epoch: SecurityEpoch) -> None:
    """Put the epoch into a role's metadata that is about to be signed."""
    fields[_FIELD] = msgspec.to_builtins(epoch)


def read_hints(custom: dict[str, Any]) -> dict[str, int]:
    """Model -> epoch, as an assignment names it; TrustError for an impossible one.

    A hint to look: the director does not raise a device's floors, the release's own role does.
    """
    try:
        return msgspec.convert(
            custom.get("epochs", {}), dict[str, Annotated[int, msgspec.Meta(ge=FIRST, le=_MOST)]]
        )
    except msgspec.ValidationError as error:
        raise TrustError(f"assignment has an impossible security epoch: {error}") from error
