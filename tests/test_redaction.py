from __future__ import annotations

from pathlib import Path

import pytest

from stagesink.redaction import secrets_of, shows_secret, without_secrets


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
        (str(Path("a", "b")), "a/b"),
    ],
)
def test_a_printed_uri_holds_no_secret_and_keeps_the_rest(uri, shown):
    assert without_secrets(uri) == shown


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
