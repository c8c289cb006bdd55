"""Authentication, protection against forged requests (CSRF), and security headers."""

from flask import Flask, Response, g, request

from shoal.controller.access import sessions, tokens
from shoal.controller.access.roles import Actor
from shoal.controller.api import proxies
from shoal.controller.host.context import Context
from shoal.errors import DeniedError, InputError

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
#: Probes ask by address, whatever the controller's names are, and learn nothing.
PROBES = frozenset({"/healthz", "/readyz"})
#: HSTS would apply to every server on a developer's machine, on any port, for a year.
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
    """Set ``g.ctx`` and ``g.actor`` before every view, refuse requests that are forged or for
    another host, add headers to every response."""
    hosts = proxies.hosts_of(ctx.settings.network)

    def identify() -> None:
        g.actor = None  # for error pages, if the next lines raise
        g.ctx = ctx._replace(address=request.remote_addr or "")
        if request.path not in PROBES and not proxies.is_known(request.host, hosts):
            raise InputError(
                f"this controller is not called {request.host[:100]!r}",
                "add that name to [network] hosts in controller.toml, if it is right",
            )
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
    """The authenticated sender of the request; DeniedError for an invalid bearer token."""
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
    """DeniedError for an unsafe request that may come from another site's page.

    A browser sends the session cookie by itself, so the request's origin must be ours. It never
    sends a token by itself; a request without either must not have another origin.
    """
    if request.method in SAFE or (actor and actor.via == "token"):
        return
    same_origin = _is_same_origin()
    if same_origin is False or (same_origin is None and actor):
        raise DeniedError(
            "this request does not come from Shoal's own pages",
            "reload the console, or use an API token",
        )


def _is_same_origin() -> bool | None:
    """Whether a page of this site sent the request; None without the browser's headers."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return None if origin is None else origin == request.host_url.rstrip("/")
