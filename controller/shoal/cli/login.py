"""`shoal login`: sign in, and pin the controller's CA."""

import socket
from typing import Any

import click

from shoal.cli import account
from shoal.cli.account import Account
from shoal.cli.api import Api, at, unreachable
from shoal.cli.command import Command, Session
from shoal.cli.exit_codes import FailedError, ProblemError
from shoal.cli.options import DURATION, confirm
from shoal.cli.user import replace_one_time
from shoal.errors import DeniedError, LinkError


@click.command(cls=Command)
@click.argument("url")
@click.option("--user", default="admin", show_default=True, help="User to sign in.")
@click.option(
    "--password",
    default="",
    envvar="SHOAL_PASSWORD",
    help="Prompted for when omitted; or in the environment as SHOAL_PASSWORD.",
)
@click.option(
    "--fingerprint",
    default="",
    metavar="HEX",
    help="SHA-256 of the controller's root CA, as `shoal-controller init` printed it: "
    "checked instead of a question.",
)
@click.option("--yes", is_flag=True, help="Trust the controller's CA without a question.")
@click.option(
    "--public-ca",
    is_flag=True,
    help="The controller's certificate is from a public CA: trust the system's list instead.",
)
@click.option("--role", default="", help="A lower role than your own: viewer, operator, ...")
@click.option(
    "--ttl", type=DURATION, default="30d", show_default=True, help="How long it stays valid."
)
@click.pass_obj
def login(
    session: Session,
    url: str,
    user: str,
    password: str,
    fingerprint: str,
    yes: bool,
    public_ca: bool,
    role: str,
    ttl: float,
) -> None:
    """Sign in to the controller at URL and save a token in ~/.config/shoal/.

    The controller's CA is fetched and shown; compare its fingerprint with the output of
    `shoal-controller init`. From then on no other CA is accepted.

    \b
    Examples:
      shoal login https://factory:8443
      SHOAL_PASSWORD=... shoal login https://factory:8443 --user ci --fingerprint 3f9a...
    """
    ca = "" if public_ca else _pinned(session, url, fingerprint, yes)
    password = password or click.prompt(f"Password of {user}", hide_input=True, err=True)
    made = _signed_in(session, Account(url=url, ca=ca), user, password, role, ttl)
    kept = Account(url=url, token=made["secret"], ca=ca, user=user, role=made["role"])
    where = account.save(kept, session.environment)
    session.show(
        {"url": url, "user": user, "role": kept.role, "expires_at": made["expires_at"]},
        lambda: f"signed in to {url} as {user} ({kept.role}); saved in {where}",
    )


def _pinned(session: Session, url: str, fingerprint: str, yes: bool) -> str:
    """The controller's CA bundle, confirmed by a person or a fingerprint."""
    ca = fetch_ca(url)
    found = account.root_fingerprint(ca)
    wanted = "".join(fingerprint.replace(":", "").split()).lower()
    session.err.print(f"CA of {url}\n  SHA-256 {_grouped(found)}")
    if wanted and wanted != found:
        raise LinkError(
            f"{url} has a CA with fingerprint {found}, not {wanted}",
            "suspect interception: compare with the output of `shoal-controller init`",
        )
    if not wanted and not yes:
        _ask_for_trust()
    return ca


def _ask_for_trust() -> None:
    try:
        confirm(
            "Is this the right CA?", without="--fingerprint HEX, or --yes to trust it unchecked"
        )
    except FailedError as error:
        raise DeniedError("nothing was sent: the CA was not trusted", error.hint) from error


def fetch_ca(url: str) -> str:
    """CA bundle (PEM) from the controller at `url`. Nothing is trusted or sent yet."""
    import httpx

    if url.startswith("http://"):
        raise LinkError(f"{url} is not https", "write it as https://HOST:8443")
    try:
        response = httpx.get(f"{url.rstrip('/')}/ca.pem", verify=False, timeout=10)  # noqa: S501
    except httpx.TransportError as error:
        raise unreachable(url, error) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise LinkError(f"{url}: {error}", "write it as https://HOST:8443") from error
    if not response.is_success:
        raise LinkError(f"{url} has no /ca.pem", "is this a Shoal controller?")
    return response.text


def _signed_in(
    session: Session, anonymous: Account, user: str, password: str, role: str, ttl: float
) -> dict[str, Any]:
    """A token; who has a one-time password is asked for one of their own first, at a terminal."""
    try:
        return _token(anonymous, user, password, role, ttl)
    except ProblemError as error:
        if not error.body.get("one_time") or session.json:
            raise
    return _token(anonymous, user, replace_one_time(anonymous, user, password), role, ttl)


def _token(anonymous: Account, user: str, password: str, role: str, ttl: float) -> dict[str, Any]:
    body = {
        "user": user,
        "password": password,
        "name": f"shoal on {socket.gethostname()}",
        "ttl_s": ttl,
    }
    with Api(anonymous) as api:
        made: dict[str, Any] = api.post(at("tokens"), body | ({"role": role} if role else {}))
    return made


def _grouped(digits: str) -> str:
    """
    >>> _grouped("00ff00ff")
    '00ff 00ff'
    """
    return " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))
