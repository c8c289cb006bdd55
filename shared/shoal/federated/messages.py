"""Messages between controller and device within a round, inside of RoundCall and RoundAnswer.

controller → device                     device → controller
Invite    the signed config             Join      with secure aggregation: its advert; or Refuse
Start     train now; the roster         Boxes     secure: encrypted shares for its neighbours
Deal      its neighbours' boxes         Piece     its contribution, piece by piece
Resend    indexes of missing pieces
Close     devices in the sum            Vote      its signature of that ending
Pass      its neighbours' votes         Shares    that unmask the sum
Measure   a signed config to evaluate   Measured
Dismiss   it is over

Every message may be repeated: the controller sends again to devices without a reply, and a device
repeats its reply.
"""

from typing import Annotated

import msgspec

from shoal.federated.chunks import Chunk
from shoal.federated.secure import Advert, Ending, Roster

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Real = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
Slug = Annotated[str, msgspec.Meta(max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=500)]
Named = Annotated[dict[str, bytes], msgspec.Meta(max_length=4096)]
Address = Annotated[str, msgspec.Meta(max_length=300)]
Generations = Annotated[dict[Slug, Count], msgspec.Meta(max_length=4096)]


class RoundMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="say"):
    """Base of both directions."""


class Invite(RoundMessage, frozen=True, kw_only=True, tag="invite"):
    """signed: shoal.federated.config; urls: sha256 -> URL of every content."""

    signed: bytes
    urls: dict[str, str]


class GatewayRoute(msgspec.Struct, frozen=True, kw_only=True):
    """Upload of a site's contributions by its gateway.

    gateway   device that sums them; the signed plan names it
    address   host:port where it accepts contributions
    members   only for the gateway: devices that it accepts and waits for, including itself
    close_s   Unix seconds, UTC, until which it waits
    most      largest weight of a device, in examples
    generations   device -> enrolments of its name so far, for names enrolled more than once; of the
                  members, or else of the gateway: its certificate is of this enrolment or a later
                  one
    """

    gateway: Slug
    address: Address
    members: Annotated[list[Slug], msgspec.Meta(max_length=4096)] = []
    close_s: Real
    most: Count
    generations: Generations | msgspec.UnsetType = msgspec.UNSET

    def generation_of(self, device: str) -> int:
        """Lowest accepted generation of its certificate."""
        return (self.generations or {}).get(device, 0)


class Start(RoundMessage, frozen=True, kw_only=True, tag="start"):
    """roster: None without secure aggregation; way: unset for a direct upload."""

    roster: Roster | None = None
    way: GatewayRoute | msgspec.UnsetType = msgspec.UNSET


class Deal(RoundMessage, frozen=True, kw_only=True, tag="deal"):
    """boxes: encrypted shares for this device, by sender."""

    boxes: Named


class Resend(RoundMessage, frozen=True, kw_only=True, tag="resend"):
    """missing: indexes of pieces; empty for all of them."""

    missing: list[Count] = []


class Close(RoundMessage, frozen=True, kw_only=True, tag="close"):
    ending: Ending


class Pass(RoundMessage, frozen=True, kw_only=True, tag="pass"):
    """votes: signatures by their device."""

    votes: Named


class Measure(RoundMessage, frozen=True, kw_only=True, tag="measure"):
    """As Invite, with a config whose purpose is "evaluate"."""

    signed: bytes
    urls: dict[str, str]


class Dismiss(RoundMessage, frozen=True, kw_only=True, tag="dismiss"):
    """reason: slug; "" when the round succeeded."""

    reason: Slug = ""


class Join(RoundMessage, frozen=True, kw_only=True, tag="join"):
    """advert: None without secure aggregation."""

    advert: Advert | None = None


class Refuse(RoundMessage, frozen=True, kw_only=True, tag="refuse"):
    """reason: slug, as in shoal.agent.federated.eligibility; detail: a sentence for people."""

    reason: Slug
    detail: Text = ""


class Boxes(RoundMessage, frozen=True, kw_only=True, tag="boxes"):
    """boxes: encrypted shares by neighbour."""

    boxes: Named


class Piece(RoundMessage, frozen=True, kw_only=True, tag="piece"):
    """chunk: of an encoded Contribution."""

    chunk: Chunk


class Vote(RoundMessage, frozen=True, kw_only=True, tag="vote"):
    signature: bytes


class Shares(RoundMessage, frozen=True, kw_only=True, tag="shares"):
    """shares: by the neighbour whose secret they reconstruct."""

    shares: Named


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics of theta on some rows. loss: sum over the rows; correct: rows, -1 where unknown."""

    rows: Count
    loss: Real
    correct: Annotated[int, msgspec.Meta(ge=-1, le=2**53)] = -1


class Measured(RoundMessage, frozen=True, kw_only=True, tag="measured"):
    """whole: all rows; classes: by true class; personal: the device's own model, if it has one."""

    whole: Slice
    classes: Annotated[dict[Slug, Slice], msgspec.Meta(max_length=1024)] = {}
    personal: Slice | None = None


class Contribution(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a device's training, before it is cut into pieces.

    update    shoal.federated.compression bytes of float32 (P,); secure: masked uint32
              little-endian, (P + 1,)
    examples, loss   rows, mean loss before training; 0 where secret (secure)
    control   compressed likewise: change of its control variate (SCAFFOLD); empty otherwise
    steps, seconds   of training
    site      msgpack shoal.federated.site_sum.SiteSum, of a gateway; update is empty then
    """

    update: bytes
    examples: Count = 0
    loss: Real = 0.0
    control: bytes = b""
    steps: Count = 0
    seconds: Real = 0.0
    site: bytes = b""


ControllerMessage = Invite | Start | Deal | Resend | Close | Pass | Measure | Dismiss
DeviceMessage = Join | Refuse | Boxes | Piece | Vote | Shares | Measured
