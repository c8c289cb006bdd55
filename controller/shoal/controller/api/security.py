"""Who asks, whether a browser was tricked into it, and what it may do with the answer."""

from flask import Flask, Response, g, request

from shoal.controller.access import sessions, tokens
from shoal.controller.access.roles import Actor
from shoal.controller.host.context import Context
from shoal.errors import DeniedError

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
#: It would bind every other server on a developer's machine, on any port, for a year.
NO_HSTS = frozenset({"localhost"})
HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'self'", "script-src 'self'", "style-src 'self'",
            "img-src 'self' data:", "connect-src 'self'", "object-src 'none'", "base-uri 'none'",
            "form-action 'self'", "frame-ancestors 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}  # fmt: skip


def install(app: Flask, ctx: Context) -> None:
    """Set ``g.actor`` before every view, refuse forged requests, add headers to every answer."""

    def identify() -> None:
        g.actor = None  # so that an error page has it, whatever fails below
        g.actor = actor_of_request(ctx)
        refuse_forged(g.actor)

    def harden(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if request.host.partition(":")[0] not in NO_HSTS:
            response.headers["Strict-Transport-Security"] = "max-age=31536000"
        return response

    app.before_request(identify)
    app.after_request(harden)


def actor_of_request(ctx: Context) -> Actor | None:
    """Who sends the request in hand; DeniedError for a bearer token that is none of ours."""
    header = request.headers.get("Authorization", "")
    scheme, _, text = header.partition(" ")
    if header:
        actor = tokens.actor_of_token(ctx, text.strip()) if scheme.lower() == "bearer" else None
        if actor is None:
            raise DeniedError(
                "this token is unknown, expired or revoked", "make another", signed_in=False
            )
        return actor
    cookie = request.cookies.get(sessions.COOKIE, "")
    return sessions.actor_of_session(ctx, cookie) if cookie else None


def refuse_forged(actor: Actor | None) -> None:
    """DeniedError for an unsafe request that another site's page may have sent.

    A session's cookie travels by itself, so the browser must vouch for where the request is from.
    A token never does; and a request without either must only not come from elsewhere.
    """
    if request.method in SAFE or (actor and actor.via == "token"):
        return
    ours = _is_ours()
    if ours is False or (ours is None and actor):
        raise DeniedError(
            "this request does not come from Shoal's own pages",
            "open the console anew, or use an API token",
        )


def _is_ours() -> bool | None:
    """Whether the browser says that our own page sent this; None when it does not say."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return None if origin is None else origin == request.host_url.rstrip("/")
