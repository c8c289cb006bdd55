"""A capability URL opens one artifact until it expires, and nothing else."""

from urllib.parse import parse_qs, urlsplit

import pytest

from shoal.controller.releases import download_urls
from shoal.errors import DeniedError

KEY, SHA, NOW = b"k" * 32, "ab" * 32, 1_700_000_000.0


def parts(url: str) -> tuple[str, str, str]:
    """Digest, expiry and signature of a URL."""
    split = urlsplit(url)
    query = parse_qs(split.query)
    return split.path.rpartition("/")[2], query["exp"][0], query["sig"][0]


def test_a_url_of_ours_opens_until_it_expires() -> None:
    url = download_urls.make_url("https://shoal:8444/", KEY, SHA, NOW + 60)
    assert url.startswith(f"https://shoal:8444/blobs/{SHA}?")
    download_urls.check(KEY, *parts(url), now_s=NOW + 59)
    with pytest.raises(DeniedError, match="expired"):
        download_urls.check(KEY, *parts(url), now_s=NOW + 60)


@pytest.mark.parametrize(
    "change",
    [
        lambda sha, exp, sig: ("cd" * 32, exp, sig),
        lambda sha, exp, sig: (sha, str(int(exp) + 1), sig),
        lambda sha, exp, sig: (sha, exp + " ", sig),
        lambda sha, exp, sig: (sha, "-1", sig),
        lambda sha, exp, sig: (sha, "", sig),
        lambda sha, exp, sig: (sha, exp, ""),
        lambda sha, exp, sig: (sha, exp, sig.upper()),
        lambda sha, exp, sig: (sha, exp, sig[:-1]),
        lambda sha, exp, sig: (sha, exp, "é\ud800"),
        lambda sha, exp, sig: ("../../keys/root.pem", exp, sig),
        lambda sha, exp, sig: (sha.upper(), exp, sig),
    ],
)
def test_a_url_that_was_changed_opens_nothing(change) -> None:  # type: ignore[no-untyped-def]
    given = change(*parts(download_urls.make_url("https://shoal", KEY, SHA, NOW + 60)))
    with pytest.raises(DeniedError, match="not signed"):
        download_urls.check(KEY, *given, now_s=NOW)


def test_even_a_signed_path_is_no_digest() -> None:
    url = download_urls.make_url("https://shoal", KEY, "../keys", NOW + 60)
    _, expires, signature = parts(url)
    with pytest.raises(DeniedError, match="not signed"):
        download_urls.check(KEY, "../keys", expires, signature, now_s=NOW)


def test_another_key_signs_another_url() -> None:
    url = download_urls.make_url("https://shoal", b"x" * 32, SHA, NOW + 60)
    with pytest.raises(DeniedError, match="not signed"):
        download_urls.check(KEY, *parts(url), now_s=NOW)
