"""Export of a signed release as one file that proves itself: shoal.release_archive."""

from collections.abc import Iterator

from shoal import manifest as manifests
from shoal import release_archive
from shoal.controller.host.context import Context
from shoal.controller.releases import releases
from shoal.errors import ConflictError
from shoal.trust import CANDIDATE, RELEASE

_ROLES = {releases.RELEASED: RELEASE, releases.SIGNED_CANDIDATE: CANDIDATE}


def archive(ctx: Context, ref: str) -> Iterator[bytes]:
    """Bytes of the archive of "model@version", a piece at a time.

    ConflictError for a release that nobody signed, or that was revoked; AbsentError where the
    artifact store has lost a file of it.
    """
    found = releases.get_release(ctx, ref)
    if found.revoked_at:
        raise ConflictError(f"{ref} was revoked: nothing lists it any more")
    if found.state not in _ROLES:
        raise ConflictError(f"{ref} is not signed", f"publish it: shoal release publish {ref}")
    _, data = releases.manifest_of(ctx, ref)
    for file in manifests.parse(data).files():
        ctx.blobs.path(file.sha256)
    proof = ctx.signer.proof(_ROLES[found.state], found.model, found.version)
    return release_archive.write(data, proof, ctx.signer.roots, ctx.blobs.path)
