"""Round config, signed by the role `rounds`: a round's plan and the hashes of its files.

It is TUF Metadata[Targets] with targets `rounds/<task>/<round>/...`. No assignment may name these
paths (shoal.trust.RINGS), so no file of a round is ever served.

Source: TUF specification 1.0.33, section 4.5; DESIGN section 5, role `rounds`.
"""

import datetime
import hashlib
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from shoal.errors import MisdirectedError, StaleError, TrustError, UntrustedError
from shoal.federated.plan import Plan

if TYPE_CHECKING:  # the trainer process reads verified configs and needs no TUF
    from tuf.api.metadata import Targets

ROLE = "rounds"
#: Validity of a signed config.
HOURS = 24
LIMIT = 262_144


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """Reference to a file by hash: hex SHA-256 and length in bytes."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    length: Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Configuration of one round for a device.

    model     the model of the device's rows to train on
    purpose   "train", or "evaluate": only measure theta
    graph     train graph (evaluate: loss graph) in ONNX
    theta     float32 little-endian (P,): the checkpoint
    control   likewise: server control variate of SCAFFOLD; None for other strategies
    personal  ranges [start, stop) of theta that stay on each device (head layers of FedPer)
    ditto     regularization of a personal model towards theta (lambda of Ditto); 0: none
    labels    class names by index of y; empty: those of the serving release
    features  of a row, in order; empty: likewise
    """

    plan: Plan
    model: str
    purpose: Literal["train", "evaluate"] = "train"
    graph: Content
    theta: Content
    control: Content | None = None
    personal: tuple[tuple[int, int], ...] = ()
    ditto: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    labels: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    def contents(self) -> dict[str, Content]:
        """File name -> content to download."""
        named = {"graph.onnx": self.graph, "theta": self.theta, "control": self.control}
        return {name: content for name, content in named.items() if content is not None}

    def text(self) -> str:
        """JSON text that is signed."""
        return msgspec.json.encode(self).decode()


def targets_of(config: Config, now_s: float) -> "Targets":
    """TUF targets to sign: the whole config, and each content by path."""
    from tuf.api.metadata import TargetFile, Targets

    plan = config.plan
    until = datetime.datetime.fromtimestamp(int(now_s), datetime.UTC)
    return Targets(
        version=plan.round,
        expires=until + datetime.timedelta(hours=HOURS),
        targets={
            path: TargetFile(content.length, {"sha256": content.sha256}, path)
            for path, content in _paths(config).items()
        },
        # As text: TUF's canonical JSON has no fractions.
        unrecognized_fields={"shoal": {"config": config.text()}},
    )


#: Made here and not by who decodes first: msgspec 0.22 looks into a type once, and two threads that
#: begin to at the same moment may end the process.
_DECODER = msgspec.json.Decoder(Config)


def verify_config(signed: bytes, delegator: "Targets", now_s: float) -> Config:
    """Read a signed config, or raise a TrustError.

    delegator   the verified top-level targets of the image repository: it names the keys of
                `rounds`
    now_s       Unix seconds; an expired config raises StaleError
    """
    from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
    from tuf.api.metadata import Metadata, Targets
    from tuf.api.serialization import DeserializationError

    if len(signed) > LIMIT:
        raise TrustError(f"round config of {len(signed)} bytes, {LIMIT} allowed")
    try:
        metadata = Metadata[Targets].from_bytes(signed)
        delegator.verify_delegate(ROLE, metadata.signed_bytes, metadata.signatures)
        text = metadata.signed.unrecognized_fields["shoal"]["config"]
        config = _DECODER.decode(text)
    except (UnsignedMetadataError, ValueError) as error:
        raise UntrustedError(f"round config is not signed by the role {ROLE}: {error}") from error
    except (RepositoryError, DeserializationError, KeyError, TypeError, AttributeError) as error:
        raise TrustError(f"round config cannot be read: {error}") from error
    listed = {
        path: (target.length, target.hashes.get("sha256"))
        for path, target in metadata.signed.targets.items()
    }
    wanted = {path: (one.length, one.sha256) for path, one in _paths(config).items()}
    if listed != wanted or metadata.signed.version != config.plan.round:
        raise MisdirectedError("round config: its contents and its targets disagree")
    if metadata.signed.expires.replace(tzinfo=datetime.UTC).timestamp() <= now_s:
        raise StaleError("round config has expired", "is the device's clock right?")
    return config


def text_of(signed: bytes) -> str:
    """The config's JSON text, exactly as signed, from bytes that `verify_config` accepted."""
    text = msgspec.json.decode(signed)["signed"]["shoal"]["config"]
    assert isinstance(text, str)
    return text


def secure_id(attempt: bytes, text: str) -> bytes:
    """Id of a round with secure aggregation, 32 bytes, bound to its attempt and whole config.

    Adverts, masks, votes and endings are bound to it. Devices with different configs (another
    graph, another clip) reject each other's adverts, and no sum of theirs can be unmasked.

        >>> secure_id(bytes(16), '{"a":1}') == secure_id(bytes(16), '{"a":2}')
        False

    attempt   16 bytes
    text      of the config, from `Config.text` or `text_of`
    """
    return hashlib.sha256(b"shoal/secagg/config\0" + attempt + text.encode()).digest()


def _paths(config: Config) -> dict[str, Content]:
    base = f"{ROLE}/{config.plan.task}/{config.plan.round}"
    return {f"{base}/{name}": content for name, content in config.contents().items()}
