"""A workspace's datastores, carried by the sink for ``az://``."""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from azureml_lines import Job, job_on, lines_before
from faults.proxy import Answer
from fsspec.config import conf

pytest.importorskip("urllib3", reason="comes with the extra azureml")
pytest.importorskip("adlfs", reason="comes with the extra az")

from stagesink.artifacts import ArtifactKey, MemorySource, StoredArtifact
from stagesink.errors import ConfigError, RunNotFound, SinkAuthError, SinkError, StagesinkError, TransientSinkError
from stagesink.sinks.azureml import datastore
from stagesink.sinks.azureml.datastore import DatastoreSink
from stagesink.sinks.protocol import ArtifactSink
from stagesink.sinks.registry import open_sink
from stagesink.testing import GeneratedSource
from stagesink.testing.azureml import FakeAzureML

KEY = ArtifactKey("run-1", "folder/a.bin")


def opened(uri: str) -> DatastoreSink:
    sink = open_sink(uri)
    assert isinstance(sink, DatastoreSink)
    return sink


def _container(job: Job, name: str) -> Any:
    """Microsoft's own client for a container, past the proxy."""
    container_client = pytest.importorskip("azure.storage.blob").ContainerClient
    azurite = replace(job.service.azurite, port=job.lines.store._target)
    return container_client.from_connection_string(azurite.connection_string, name)


@pytest.mark.parametrize("credential", ["Sas", "AccountKey"])
@pytest.mark.parametrize("form", ["long", "with its host", "short"])
def test_an_object_lands_in_the_container_under_path_and_run(job: Job, form: str, credential: str) -> None:
    name, container = f"store{credential.lower()}", f"container-{credential.lower()}"
    job.service.add_datastore(name, container, credential)  # type: ignore[arg-type]
    uri = {
        "long": job.service.datastore_uri(name, "a b/c"),
        "with its host": f"{job.sink.uri}/datastores/{name}/paths/a%20b/c",
        "short": f"azureml://datastores/{name}/paths/a%20b/c/",
    }[form]
    sink = opened(uri)
    stored = sink.put(KEY, MemorySource(b"x"))
    # obstore, which carries a key, has the store compute an MD5; adlfs, which carries a signature, sends a block.
    told = {"md5": hashlib.md5(b"x").hexdigest()} if credential == "AccountKey" else {}
    assert sink.stat(KEY) == replace(stored, digests=told)
    assert [each.key for each in sink.list("run-1")] == [KEY]
    with _container(job, container) as client:
        assert client.download_blob("a b/c/run-1/folder/a.bin").readall() == b"x"
    sink.delete(KEY)
    assert sink.stat(KEY) is None
    sink.close()


def test_the_service_is_asked_once(job: Job) -> None:
    sink = opened("azureml://datastores/workspaceblobstore/paths/once")
    for _ in range(3):
        sink.put(KEY, MemorySource(b"x"))
    assert job.service.calls == ["datastore"]
    sink.close()


def test_it_is_asked_again_before_the_signature_ends(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = opened("azureml://datastores/workspaceblobstore/paths/again")
    sink.put(KEY, MemorySource(b"x"))
    steady = time.monotonic
    monkeypatch.setattr(datastore.time, "monotonic", lambda: steady() + 3200)  # of an hour
    sink.stat(KEY)
    assert job.service.calls.count("datastore") == 1
    monkeypatch.setattr(datastore.time, "monotonic", lambda: steady() + 3400)
    closed: list[ArtifactSink] = []
    assert sink._opened is not None
    first = sink._opened[0]
    monkeypatch.setattr(first, "close", lambda: closed.append(first))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: sink.stat(KEY), range(8)))
    assert job.service.calls.count("datastore") == 2  # all at once, and only one asks
    assert closed == []  # an upload may still be using it
    sink.close()
    assert closed == [first]


def test_a_signature_that_ends_within_an_object_is_a_reason_to_try_again(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = opened("azureml://datastores/workspaceblobstore/paths/ends")
    sink.put(KEY, MemorySource(b"x"))
    assert sink._opened is not None
    seconds, steady = 0.0, time.monotonic
    monkeypatch.setattr(datastore.time, "monotonic", lambda: steady() + seconds)

    def put(*_: object, **__: object) -> StoredArtifact:
        nonlocal seconds
        seconds += after
        raise SinkAuthError("403")

    monkeypatch.setattr(sink._opened.sink, "put", put)
    after = 10.0
    with pytest.raises(SinkAuthError):
        sink.put(KEY, MemorySource(b"yy"))
    after = 3700.0
    with pytest.raises(TransientSinkError, match="ended meanwhile"):
        sink.put(KEY, MemorySource(b"yy"))
    assert sink.put(KEY, MemorySource(b"yy")).size == 2
    assert job.service.calls.count("datastore") == 2
    sink.close()


ENDED = Answer(403, headers={"x-ms-error-code": "AuthenticationFailed"})
SIZE = 17 << 20  # more than is read at once


@pytest.fixture
def held(job: Job) -> Iterator[DatastoreSink]:
    """A datastore with an object in it."""
    with _container(job, "azureml-blobstore") as client:
        client.upload_blob(f"ended/{KEY}", GeneratedSource(SIZE).read(), overwrite=True)
    sink = opened("azureml://datastores/workspaceblobstore/paths/ended")
    assert sink.stat(KEY) is not None
    yield sink
    sink.close()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda sink: sink.stat(KEY).size, SIZE),
        (lambda sink: len(sink.open(KEY).read()), SIZE),
        (lambda sink: [stored.key for stored in sink.list(KEY.run_id)], [KEY]),
        (lambda sink: sink.delete(KEY), None),
    ],
    ids=["stat", "open", "list", "delete"],
)
def test_whatever_is_done_when_a_signature_ends_is_tried_again_with_another(
    job: Job,
    held: DatastoreSink,
    call: Callable[[ArtifactSink], object],
    expected: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job.lines.store.plan(ENDED, times=9)
    with pytest.raises(SinkAuthError):
        call(held)
    assert held._opened is not None
    late = held._opened.ends
    monkeypatch.setattr(held, "_opened", held._opened._replace(ends=time.monotonic()))  # but would be used for long
    with pytest.raises(TransientSinkError, match="ended meanwhile"):
        call(held)
    job.lines.store.forget()
    assert call(held) == expected
    assert job.service.calls.count("datastore") == 2
    assert held._opened.ends != late


def test_a_signature_that_ends_while_an_object_is_read(
    job: Job, held: DatastoreSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held.open(KEY) as stream:
        assert len(stream.read(1000)) == 1000
        job.lines.store.plan(ENDED, times=9)
        steady = time.monotonic
        monkeypatch.setattr(datastore.time, "monotonic", lambda: steady() + 3700)
        with pytest.raises(TransientSinkError, match="ended meanwhile"):
            stream.read()
    job.lines.store.forget()
    assert len(held.open(KEY).read()) == SIZE


def test_azures_own_word_for_a_signature_that_has_ended(
    azureml_service: FakeAzureML, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datastore, "_LEAST", 3600.0)
    with lines_before(azureml_service, tmp_path, sas_seconds=2) as lines, job_on(lines, monkeypatch):
        sink = opened("azureml://datastores/workspaceblobstore/paths/briefly")
        with suppress(TransientSinkError):  # this machine may be busy
            sink.stat(KEY)
        sink._current()
        time.sleep(3)
        with pytest.raises(TransientSinkError, match="ended meanwhile"):
            sink.stat(KEY)
        sink.close()


def test_a_datastore_needs_no_run(job: Job) -> None:
    assert not hasattr(opened("azureml://datastores/workspaceblobstore"), "tracks_runs")


def test_one_that_the_workspace_does_not_know(job: Job) -> None:
    with pytest.raises(RunNotFound, match="Check the datastore's name"):
        opened("azureml://datastores/nowhere").stat(KEY)


@pytest.mark.parametrize(
    "answer", [{"name": "x"}, {"azureStorageSection": {"accountName": "a"}}, {"azureStorageSection": 1}]
)
def test_one_that_is_no_blob_container(job: Job, answer: object) -> None:
    job.lines.front.plan(Answer(200, body=json.dumps(answer).encode()))
    with pytest.raises(SinkError, match=r"it is no blob container\. Take a datastore of the type"):
        opened("azureml://datastores/files").stat(KEY)


def test_one_whose_type_is_another(job: Job) -> None:
    job.service.add_datastore("files", "a-file-share", type="AzureFile")
    with pytest.raises(ConfigError, match=r"it is of the type AzureFile, .* Take a datastore of the type") as caught:
        opened("azureml://datastores/files").stat(KEY)
    assert "sig=" not in _everything(caught.value)


@pytest.mark.parametrize("kind", ["AzureBlob", "AzureDataLakeGen2"])
@pytest.mark.parametrize("credential", ["Sas", "AccountKey"])
def test_a_secret_without_its_older_name(job: Job, credential: str, kind: str) -> None:
    name = f"new{credential}{kind}".lower()
    job.service.add_datastore(name, name, credential, type=kind, older_names=False)  # type: ignore[arg-type]
    sink = opened(f"azureml://datastores/{name}")
    stored = sink.put(KEY, MemorySource(b"x"))
    found = sink.stat(KEY)
    assert found is not None
    assert replace(found, digests={}) == stored
    assert sink._opened is not None
    assert (sink._opened.ends is not None) == (credential == "Sas")
    sink.close()


def test_a_signature_that_the_store_refuses(job: Job) -> None:
    section = {
        "accountName": job.service.azurite.account,
        "containerName": "azureml-blobstore",
        "endpoint": f"127.0.0.1:{job.lines.store.port}",
        "protocol": "http",
        "sasToken": "?sv=2021-12-02&se=2999-01-01T00%3A00%3A00Z&sr=c&sp=rw&sig=bm90IHRoZSBzaWduYXR1cmU%3D",
    }
    job.lines.front.plan(Answer(200, body=json.dumps({"azureStorageSection": section}).encode()), times=2)
    sink = opened("azureml://datastores/workspaceblobstore")
    with pytest.raises(SinkAuthError) as caught:
        sink.put(KEY, MemorySource(b"x"))
    assert "bm90IHRoZSBzaWduYXR1cmU" not in _everything(caught.value)
    sink.close()


@pytest.mark.parametrize(
    ("section", "options"),
    [
        (
            {"accountName": "acc", "sasToken": "?sig=x"},
            "BlobEndpoint=https://acc.blob.core.windows.net;AccountName=acc;SharedAccessSignature=sig=x",
        ),
        (
            {"accountName": "acc", "accountKey": "a2V5", "endpoint": "core.chinacloudapi.cn", "protocol": "https"},
            "BlobEndpoint=https://acc.blob.core.chinacloudapi.cn;AccountName=acc;AccountKey=a2V5",
        ),
        (
            {"accountName": "acc", "accountKey": "a2V5", "endpoint": "127.0.0.1:10000", "protocol": "http"},
            "BlobEndpoint=http://127.0.0.1:10000/acc;AccountName=acc;AccountKey=a2V5",
        ),
    ],
)
def test_what_the_store_is_opened_with(section: dict[str, str], options: str) -> None:
    assert datastore._options(section, {}) == {"connection_string": options}


def test_without_a_secret_we_show_ourselves_who_we_are() -> None:
    options = {"account_name": "acc", "anon": False, "account_host": "acc.blob.core.windows.net"}
    assert datastore._options({"accountName": "acc"}, {}) == options
    china = {"accountName": "acc", "endpoint": "core.chinacloudapi.cn", "protocol": "https"}
    assert datastore._options(china, {}) == {**options, "account_host": "acc.blob.core.chinacloudapi.cn"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("CONNECTION_STRING", "AccountName=other;AccountKey=c2VjcmV0"), ("ACCOUNT_KEY", "c2VjcmV0"), ("SAS_TOKEN", "s")],
)
def test_nobody_elses_account_stands_for_the_datastores(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    with pytest.raises(ConfigError, match=f"AZURE_STORAGE_{name} is another account's") as caught:
        datastore._options({"accountName": "acc"}, {})
    assert "c2VjcmV0" not in str(caught.value)
    monkeypatch.delenv(f"AZURE_STORAGE_{name}")
    monkeypatch.setitem(conf, "az", {name.lower(): value})
    with pytest.raises(ConfigError, match=f"fsspec's {name.lower()} is another account's"):
        datastore._options({"accountName": "acc"}, {})
    datastore._options({"accountName": "acc"}, {"connection_string": "AccountName=acc;AccountKey=a2V5"})  # goes first
    assert datastore._options({"accountName": "acc", "accountKey": "a2V5"}, {})["connection_string"].endswith("a2V5")


def test_nothing_secret_is_shown_and_a_copy_means_the_same(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = opened("azureml://datastores/workspaceblobstore/paths/a%20b")
    stored = sink.put(KEY, MemorySource(b"x"))
    pickled = pickle.dumps(sink)
    for text in (repr(sink), sink.uri, repr(stored), str(pickled)):
        assert "sig=" not in text
        assert job.service.azurite.key not in text
    monkeypatch.setenv("AZUREML_ARM_WORKSPACE_NAME", "another")
    copy = pickle.loads(pickled)
    assert copy.uri == sink.uri
    assert copy.stat(KEY) == stored
    for each in (sink, copy):
        each.close()


def _everything(error: StagesinkError) -> str:
    import traceback

    return "".join(traceback.format_exception(error)) + repr(error)
