"""`shoal token`: API tokens for machines."""

import click

from shoal.cli import account
from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.options import DURATION
from shoal.cli.render import Columns, plain, table, when
from shoal.cli.user import ROLES


@click.group(cls=CommandGroup)
def token() -> None:
    """API tokens: for machines, with a role, an end, and models and sites they are for."""


@token.command("list")
@click.pass_obj
def list_tokens(session: Session) -> None:
    """List tokens: your own, for an admin everybody's.

    \b
    Example:
      shoal token list
    """
    found = list(session.api.items(at("tokens")))
    columns: Columns = {
        "token": "id",
        "name": "name",
        "user": "user",
        "role": "role",
        "models": lambda t: plain(t["models"]) or "all",
        "sites": lambda t: plain(t["sites"]) or "all",
        "expires": when("expires_at", session.now),
        "last used": when("last_used_at", session.now),
    }
    session.show(found, lambda: table(found, columns, empty="no token"))


@token.command("create")
@click.argument("name")
@click.option("--role", type=ROLES, default=None, help="Default: your own role.")
@click.option("--model", "models", multiple=True, help="Only this model; may be repeated.")
@click.option("--site", "sites", multiple=True, help="Only this site; may be repeated.")
@click.option("--ttl", type=DURATION, default="30d", show_default=True, help="Valid for so long.")
@click.option("--user", default="", help="Default: the signed-in user.")
@click.option(
    "--password",
    default="",
    envvar="SHOAL_PASSWORD",
    help="Prompted for when omitted; or in the environment as SHOAL_PASSWORD.",
)
@click.pass_obj
def create(
    session: Session,
    name: str,
    role: str | None,
    models: tuple[str, ...],
    sites: tuple[str, ...],
    ttl: float,
    user: str,
    password: str,
) -> None:
    """Create a token, shown once. It needs your password again: a stolen token makes no other.

    A token for models or sites is refused for every request that is about others, or about all.

    \b
    Examples:
      shoal token create ci --role operator --model parts --ttl 7d
      shoal token create dashboard --role viewer --site north
    """
    who = user or account.load(session.environment).user or "the signed-in user"
    password = password or click.prompt(f"Password of {who}", hide_input=True, err=True)
    body = {
        "name": name, "role": role or "", "models": list(models), "sites": list(sites),
        "ttl_s": ttl, "user": user, "password": password,
    }  # fmt: skip
    made = session.api.post(at("tokens"), body)
    session.show(made, lambda: f"token {plain(name)}, shown once:\n{plain(made['secret'])}")


@token.command("revoke")
@click.argument("token")
@click.pass_obj
def revoke(session: Session, token: str) -> None:
    """Revoke a token at once. Its id is the part between the underscores, and in the list.

    \b
    Example:
      shoal token revoke 3f2a9c1b3f2a
    """
    session.api.delete(at("tokens", token))
    session.show({"revoked": token}, lambda: f"token {plain(token)} is revoked")
