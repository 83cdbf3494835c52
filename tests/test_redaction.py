from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagesink.redaction import hide_in_logs, secrets_of, shows_secret, without_secrets, without_secrets_in


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://user:pass@host/p", "https://***@host/p"),
        ("https://token@host/p", "https://***@host/p"),
        ("s3://KEY:sec/ret@bucket/p", "s3://***@bucket/p"),
        ("ftp://u:p@ss@host/p", "ftp://***@host/p"),
        ("az://c/p?sv=1&sig=abc", "az://c/p?***"),
        ("az://c/p#frag", "az://c/p?***"),
        ("sftp://host:22/a@b", "sftp://host:22/a@b"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("abfs://container@account.dfs.core.windows.net/p", "abfs://container@account.dfs.core.windows.net/p"),
        ("abfs://container@account/p?sig=abc", "abfs://container@account/p?***"),
        ("file:./a@b?c", "file:./a@b?c"),
        ("memory:", "memory:"),
        ("memory://", "memory://"),
        ("s3://AKIAX:SECRET/abc@bucket/x", "s3://***@bucket/x"),
        ("ftp://u:22:x@host/p", "ftp://***@host/p"),
        ("ftp://u:123456/x@host/p", "ftp://***@host/p"),
        ("abfs://user:pass@account/p", "abfs://***@account/p"),
        ("ftp://[brackets:pass@host", "ftp://***@host"),
        ("ftp://u:p?ss@host/p", "ftp://***"),
        ("ftp://u:p@s#s@host/p", "ftp://***"),
        ("https://tok?en@host/p", "https://***"),
        ("https://host/p?url=ftp://u:p@host", "https://host/p?***"),
        ("https://host:443?x=1", "https://host:443?***"),
        (str(Path("a", "b")), "a/b"),
    ],
)
def test_a_printed_uri_holds_no_secret_and_keeps_the_rest(uri, shown):
    assert without_secrets(uri) == shown


@pytest.mark.parametrize(
    ("uri", "secrets"),
    [
        ("s3://AKIAX:SECRET/abc@bucket/x", {"AKIAX", "SECRET/abc", "SECRET"}),
        ("ftp://user:se@cret@host/a@b", {"user", "se@cret"}),
        ("ftp://[user:secret@host", {"[user", "secret"}),
        ("ftp://user:p%40ss%word@host", {"user", "p%40ss%word", "p@ss%word"}),
    ],
)
def test_user_and_password_are_secrets_whatever_a_parser_makes_of_them(uri, secrets):
    assert secrets <= secrets_of(uri, {})


@pytest.mark.parametrize("uri", ["", "file:./a", "sftp://host:22/a@b", "https://user@host/p", "ftp://[", "x://\udcff:"])
def test_a_uri_without_a_password_has_no_secret(uri, monkeypatch):
    monkeypatch.setattr("os.environ", {})
    assert secrets_of(uri, {}) == frozenset()


@given(st.text("a:/@?#[]%1\n", max_size=12), st.text(max_size=5))
def test_no_text_is_too_odd(text, password):
    for uri in (text, f"ftp://{text}", f"ftp://user:{password}@host"):
        without_secrets(uri)
        secrets_of(uri, {"key": text})


@given(st.text("ab:/@?#[]%", max_size=5), st.text("ab/?#=@", max_size=3))
def test_no_password_survives(around, path):
    assert "SECRET" not in without_secrets(f"s3://user:{around}SECRET{around}@bucket/{path}")


def test_a_secret_of_the_environment_that_is_no_text_is_one_too(monkeypatch):
    monkeypatch.setattr("os.environ", {"AWS_SECRET_ACCESS_KEY": "\udcff-secret"})
    assert "\udcff-secret" in secrets_of("memory:", {})


def test_a_cause_that_quotes_a_secret_is_found_however_it_is_spelled() -> None:
    secrets = secrets_of(
        "ftp://u:p%40ssword@h/", {"sas_token": "?sv=1&sig=abc%3Ddef", "client_kwargs": {"password": "nested"}}
    )
    for text in ("url: p%40ssword", "p@ssword", "...&sig=abc=def", "sig=abc%3Ddef", "is nested here"):
        inner = ValueError(text)
        outer = RuntimeError("outer")
        outer.__cause__ = inner
        assert shows_secret(outer, secrets), text
    assert not shows_secret(ValueError("nothing to see"), secrets)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("PUT https://me:word@host/x?sig=SECRET failed", "PUT https://***@host/x?*** failed"),
        ("no 'https://h/a?b=c'; s3://bucket/x.", "no 'https://h/a?***'; s3://bucket/x."),
        ("nothing: to/see here", "nothing: to/see here"),
    ],
)
def test_a_text_that_quotes_urls_shows_no_secret(text, shown):
    assert without_secrets_in(text) == shown


@pytest.mark.parametrize("name", ["X-Amz-Signature", "X-Goog-Signature", "Signature", "sig"])
def test_an_exception_that_quotes_any_signed_url_is_recognised(name):
    error = ValueError("It could not be put.")
    error.__cause__ = OSError(f"Max retries exceeded with url: /bucket/a%20b?part=1&{name}=0abc%3D (Caused by nothing)")
    assert shows_secret(error, ())
    assert not shows_secret(ValueError(f"no query: {name}=0abc"), ())


@pytest.mark.parametrize(
    "text",
    [
        '"PUT /bucket/key?partNumber=1&X-Amz-Signature=0ABC HTTP/1.1" 200 0',
        r"https://host/c/b?sv=1\u0026sr=b\u0026sig=0ABC",
        "Location: https%3A%2F%2Fhost%2Fb%3Fsv%3D1%26sig%3D0ABC",
        "{'X-Amz-Signature': '0ABC', 'x-amz-security-token': b'0ABC'}",
    ],
)
def test_others_log_no_signature(text, caplog):
    caplog.set_level("DEBUG")
    log = logging.getLogger("somebody.elses")
    hide_in_logs(log.name)
    log.debug("%s", text)
    assert "0ABC" not in caplog.text
    assert "***" in caplog.text
    assert log.filter(logging.LogRecord(log.name, logging.DEBUG, "", 1, "its handler tells that: %d", ("no",), None))


@pytest.mark.parametrize("piece", ["?", "?a", "%3F", "?sig", "signature "])
def test_a_long_text_takes_no_time(piece):
    """Quadratic, each of these would take minutes."""
    assert not shows_secret(ValueError(piece * 50_000), ())
