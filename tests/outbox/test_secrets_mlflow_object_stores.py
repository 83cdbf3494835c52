"""No secret lies on the disk: everything that an outbox holds, looked through after uploads that could not land."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from outbox_store import Store
from servers import closed_port

from stagesink import ArtifactUploader
from stagesink.artifacts import ArtifactKey, Source
from stagesink.config import load_config
from stagesink.keeping import open_outbox, open_sink_again
from stagesink.outbox.sync import Sync
from stagesink.sinks.memory import MemorySink
from stagesink.testing import FaultySink
from stagesink.transfer import TransferOptions

PASSWORD = "pa55/word?that nobody&sees"
PLAIN = "pa55word-that-nobody-sees"
TOKEN = "t0ken-that-nobody-sees"
KEY = base64.b64encode(b"account key that nobody sees").decode()
SIGNATURE = "c2lnbmF0dXJlIHRoYXQgbm9ib2R5IHNlZXM="
SECRETS = (PASSWORD, PLAIN, TOKEN, KEY, SIGNATURE)

ENVIRONMENT = {
    "MLFLOW_TRACKING_TOKEN": TOKEN,
    "MLFLOW_TRACKING_PASSWORD": PLAIN,
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": KEY,
    "AWS_SESSION_TOKEN": TOKEN,
    "AZURE_STORAGE_KEY": KEY,
    "AZURE_CLIENT_SECRET": TOKEN,
    "HTTPS_PROXY": "",
}
SAS = f"sv=2024-11-04&sp=rwdl&sr=c&sig={quote(SIGNATURE, safe='')}"
CLOSED = closed_port()
HERE = f"http://127.0.0.1:{CLOSED}"

CASES: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "a password": ("urllib3", f"mlflow+http://me:{PLAIN}@127.0.0.1:{CLOSED}", {}),
    "a token": ("urllib3", f"mlflow+{HERE}", {}),
    "keys": ("obstore", "s3://bucket/runs", {"key": "AKIA", "secret": KEY, "token": TOKEN, "endpoint_url": HERE}),
    "keys of the environment": ("obstore", "s3://bucket/runs", {"endpoint_url": HERE}),
    "an account key": (
        "obstore",
        "az://stagesink/runs",
        {"connection_string": f"BlobEndpoint={HERE}/me;AccountName=me;AccountKey={KEY}"},
    ),
    "a signature": (
        "obstore",
        "az://stagesink/runs",
        {"connection_string": f"BlobEndpoint={HERE}/me;AccountName=me;SharedAccessSignature={SAS}"},
    ),
    "an odd password": ("fsspec", f"ftp://me:{quote(PASSWORD, safe='')}@127.0.0.1:{CLOSED}/runs", {}),
}


class Talkative(FaultySink):
    """Somebody else's sink, which quotes all it knows in errors of its own kind."""

    def put(self, key: ArtifactKey, source: Source, **_: Any) -> Any:
        raise TalkativeError(f"refused {PLAIN} {TOKEN}")


class TalkativeError(Exception):
    @property
    def message(self) -> str:
        return str(self)


@pytest.fixture(autouse=True)
def _with_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAGESINK_OUTBOX_KEEP_FREE", "0")
    monkeypatch.setenv("STAGESINK_RETRIES", "1")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def spelled(secret: str) -> set[bytes]:
    forms = {secret, quote(secret), quote(secret, safe=""), repr(secret)[1:-1]}
    return {form.encode() for form in forms} | {base64.b64encode(secret.encode()).rstrip(b"=")}


def assert_no_secret_in(folder: Path) -> None:
    """Look through names and bytes, those of the open index and of its log too."""
    files = [each for each in folder.rglob("*") if each.is_file()]
    assert any(each.name == "plan.json" for each in files)
    assert any(each.name == "index.db" for each in files)
    for each in files:
        text = each.read_bytes() + b"\n" + os.fsencode(each)
        for secret in SECRETS:
            assert not [form for form in spelled(secret) if form in text], each


@pytest.mark.once
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_nothing_that_opens_a_store_is_kept_with_what_waits_for_it(name: str, background: bool, tmp_path: Path) -> None:
    package, uri, options = CASES[name]
    pytest.importorskip(package)
    (tmp_path / "metrics.json").write_text("{}")
    uploader = ArtifactUploader("0" * 32, sink=uri, storage_options=options, background=background, attempts=1)
    with uploader:
        assert uploader.upload_file(tmp_path / "metrics.json") is background
        for handle in uploader.handles:
            assert handle.exception(timeout=60) is not None
    outbox = open_outbox(load_config().artifacts.outbox)
    assert [row.path for row in outbox.rows()] == ["metrics.json"], uploader.errors
    with Sync(outbox, lambda kept: open_sink_again(load_config(), kept), TransferOptions(attempts=1)) as sync:
        (outcome,) = sync.run()
    assert outcome.status == "failed"
    assert outbox.rows()[0].error
    assert_no_secret_in(outbox.path)
    for row in outbox.rows():
        outbox.remove(row.id)


@pytest.mark.parametrize("background", [False, True])
def test_what_somebody_elses_sink_says_is_not_written_down(tmp_path: Path, background: bool) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    uploader = ArtifactUploader("run", sink=Talkative(MemorySink("talkative")), background=background, attempts=1)
    with uploader:
        uploader.upload_file(tmp_path / "metrics.json")
        for handle in uploader.handles:
            assert handle.exception(timeout=60) is not None
    outbox = open_outbox(load_config().artifacts.outbox)
    (row,) = outbox.rows()
    assert background or row.error
    assert_no_secret_in(outbox.path)
    outbox.remove(row.id)


def test_a_secret_that_is_kept_would_be_found(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.take_away()
    (tmp_path / "metrics.json").write_text(quote(PASSWORD))  # what one uploads is one's own affair, and kept as it is
    ArtifactUploader("run", sink=store.uri).upload_file(tmp_path / "metrics.json")
    outbox = open_outbox(load_config().artifacts.outbox)
    with pytest.raises(AssertionError, match="files"):
        assert_no_secret_in(outbox.path)
