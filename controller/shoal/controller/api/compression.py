"""Compression of responses: gzip of text that a browser or client asks for.

Only responses to GET: what shows a secret once (a join token, an API token) answers a POST, so no
secret stands beside text that somebody else chose (BREACH, https://breachattack.com).
"""

import gzip

from flask import Flask, Response, request

#: Bytes below which a response is sent as it is, and above which it is not read into memory.
LEAST, MOST = 1_000, 8 << 20
#: Half the CPU of level 9, for some percent more bytes.
LEVEL = 5
MEDIA = frozenset(
    {
        "application/javascript", "application/json", "application/problem+json", "image/svg+xml",
        "text/css", "text/html", "text/javascript", "text/plain",
    }
)  # fmt: skip


def install(app: Flask) -> None:
    """Compress the responses of an application."""
    app.after_request(compress)


def compress(response: Response) -> Response:
    """The response as gzip, where the client takes it and it is worth it.

    The ETag becomes a weak one: the same content, other bytes.
    """
    if request.method != "GET" or response.mimetype not in MEDIA:
        return response
    response.vary.add("Accept-Encoding")
    if response.status_code != 200 or "Content-Encoding" in response.headers:
        return response
    if not LEAST <= (response.content_length or 0) <= MOST:
        return response
    if request.accept_encodings.quality("gzip") <= 0:
        return response
    response.direct_passthrough = False  # a static file
    etag, _weak = response.get_etag()
    response.set_data(gzip.compress(response.get_data(), LEVEL, mtime=0))
    response.headers["Content-Encoding"] = "gzip"
    if etag:
        response.set_etag(etag, weak=True)
    return response
