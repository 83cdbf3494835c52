"""What the conformance suite cannot know of the sink over obstore: who carries what, secrets, digests, parts, forks."""

from __future__ import annotations

import base64
import gc
import hashlib
import os
import pickle
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from faults.proxy import Answer, FaultProxy
from fsspec import get_filesystem_class
from fsspec.config import conf
from outside import python
from servers import S3Server
from trainers import LOADED

pytest.importorskip("obstore", reason="comes with the extras az, s3 and gs, from Python 3.11 on")

from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import ConfigError, RunNotFound, SinkError, SourceChanged, TransientSinkError
from stagesink.sinks import ArtifactSink, open_sink, registry
from stagesink.sinks._hosts import PROTOCOLS
from stagesink.sinks.fsspec import FsspecSink
from stagesink.sinks.obstore import ObstoreSink, azure, google, s3
from stagesink.sinks.obstore import look as look_at
from stagesink.sinks.obstore.azure_list import listed
from stagesink.sinks.obstore.azure_sas import ContainerSas
from stagesink.sinks.obstore.look import Look
from stagesink.sinks.obstore.parts import PART_BYTES, part_bytes
from stagesink.sinks.protocol import NotingSink, SweepingSink
from stagesink.testing import GeneratedSource
from stagesink.testing.azurite import Azurite
from stagesink.testing.conformance import NAMES
from stagesink.testing.memory import PeakMemory
from stagesink.transfer import Transfer, plan_file, plan_tree

KEY = ArtifactKey("run", "folder/object.bin")
KEYS = {"key": "AKIA", "secret": "s3cret"}
S3 = {**KEYS, "client_kwargs": {"region_name": "eu-west-1"}}
AZURE = {"account_name": "acct", "account_key": "a2V5"}


@pytest.fixture
def sink(moto: S3Server, bucket: str, request: pytest.FixtureRequest) -> ArtifactSink:
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name)
    sink = open_sink(f"s3://{bucket}/{name}", storage_options=moto.options())
    assert isinstance(sink, ObstoreSink)
    return sink


@pytest.fixture
def proxy(moto: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(moto.port) as proxy:
        yield proxy


@pytest.fixture
def proxied(moto: S3Server, bucket: str, proxy: FaultProxy, request: pytest.FixtureRequest) -> ArtifactSink:
    return open_sink(f"s3://{bucket}/{request.node.name}", storage_options=moto.options(port=proxy.port))


def unfinished(moto: S3Server, bucket: str, sink: ArtifactSink) -> list[str]:
    folder = sink.uri.removeprefix(f"s3://{bucket}/")
    found = moto.boto3().list_multipart_uploads(Bucket=bucket, Prefix=folder).get("Uploads", [])
    return [upload["Key"] for upload in found]


def begun_and_aborted(proxy: FaultProxy) -> tuple[int, int]:
    """Return how many uploads in parts were begun, and how many aborted.

    Asked of the wire and not of the store: moto answers 500 to an abort while a part arrives, and keeps both.
    """
    begun = sum(method == "POST" and "?uploads" in path for method, path in proxy.requests)
    return begun, sum(method == "DELETE" and "uploadId=" in path for method, path in proxy.requests)


def begin_upload(moto: S3Server, bucket: str, sink: ArtifactSink) -> str:
    """Do what a process does that is killed in the middle."""
    name = f"{sink.uri.removeprefix(f's3://{bucket}/')}/{KEY}"
    moto.boto3().create_multipart_upload(Bucket=bucket, Key=name)
    return name


# -- who carries what --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "options", "environ"),
    [
        ("s3://bucket/a", S3, {}),
        ("s3a://bucket", S3, {}),
        (
            "s3://bucket",
            {},
            {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "eu-west-1"},
        ),
        ("s3://bucket", {"key": "a", "secret": "b", "endpoint_url": "http://localhost:1"}, {}),
        ("s3://bucket", {**S3, "config_kwargs": {"read_timeout": 5}}, {}),
        ("s3://bucket", {**S3, "token": "c"}, {}),
        ("az://container/a b", AZURE, {}),
        ("abfs://container@acct.dfs.core.windows.net/a", {"account_key": "a2V5"}, {}),
        ("az://container", {}, {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=acct;AccountKey=a2V5"}),
    ],
)
def test_obstore_carries_what_it_can(
    uri: str, options: dict[str, Any], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    sink = open_sink(uri, storage_options=options)
    assert isinstance(sink, ObstoreSink)
    assert sink.uri == FsspecSink(uri, options).uri
    sink._client()  # obstore takes what it is told


@pytest.mark.parametrize(
    ("uri", "options", "environ"),
    [
        ("s3://bucket", {}, {}),
        ("s3://bucket", {"key": "a", "secret": "b"}, {}),
        ("s3://bucket", {**S3, "requester_pays": True}, {}),
        ("s3://bucket", {**S3, "anon": True}, {}),
        ("s3://bucket", {**S3, "client_kwargs": {"verify": False}}, {}),
        ("s3://bucket", {**S3, "s3_additional_kwargs": {"ServerSideEncryption": "aws:kms"}}, {}),
        ("s3://bucket", {**S3, "config_kwargs": {"s3": {"addressing_style": "virtual"}}}, {}),
        ("s3://bucket--usw2-az1--x-s3", S3, {}),
        ("s3://bucket//double", S3, {}),
        ("s3://bucket", S3, {"AWS_PROFILE": "other"}),
        ("s3://bucket", S3, {"AWS_ENDPOINT": "http://elsewhere"}),
        ("s3://bucket", S3, {"AWS_SESSION_TOKEN": "of another key"}),
        ("s3://bucket", {**S3, "token": "c", "endpoint_url": "http://localhost:1"}, {}),
        ("s3://bucket", S3, {"AWS_CONFIG_FILE": __file__}),
        ("az://container", {**AZURE, "credential": object()}, {}),
        ("abfss://container@acct.blob.core.windows.net/a", {"sas_token": "?sv=1&sig=x"}, {}),
        ("az://container", {}, {"AZURE_STORAGE_ACCOUNT_NAME": "acct", "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=x"}),
        ("az://container", {**AZURE, "version_aware": True}, {}),
        ("az://container", {"account_name": "acct", "client_id": "a", "client_secret": "b", "tenant_id": "c"}, {}),
        ("az://container", AZURE, {"AZURE_STORAGE_USE_EMULATOR": "true"}),
    ],
)
def test_fsspec_carries_what_obstore_cannot(
    uri: str, options: dict[str, Any], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert isinstance(open_sink(uri, storage_options=options), FsspecSink)


@pytest.mark.parametrize(
    ("protocol", "uri", "options"),
    [
        ("s3", "s3://bucket", S3),
        ("s3a", "s3://bucket", S3),
        ("az", "az://container", AZURE),
        ("abfs", "az://container", AZURE),
        ("az", "abfss://container@acct.dfs.core.windows.net/a", {"account_key": "a2V5"}),
    ],
)
def test_fsspec_carries_what_its_own_configuration_speaks_of(
    protocol: str, uri: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(conf, protocol, {"default_block_size": 1})
    assert isinstance(open_sink(uri, storage_options=options), FsspecSink)


def test_a_variable_of_fsspecs_names_one_store_for_both_carriers() -> None:
    program = (
        "from stagesink.sinks import open_sink\n"
        "sink = open_sink('s3://bucket', storage_options={'key': 'a', 'secret': 'b'})\n"
        "print(type(sink).__name__, sink.host)\n"
    )
    environ = {"FSSPEC_S3_ENDPOINT_URL": "http://minio:9000", "AWS_DEFAULT_REGION": "eu-west-1"}
    assert python(program, **environ).stdout.split() == ["FsspecSink", "http://minio:9000"]


def test_obstore_carries_the_regions_whose_hosts_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS is in parts, with a domain each, and botocore knows them."""
    import botocore.session

    carried: dict[str, bool] = {}
    for partition in botocore.session.get_session().get_data("endpoints")["partitions"]:
        for region in partition["regions"]:
            monkeypatch.setenv("AWS_DEFAULT_REGION", region)
            carried[region] = isinstance(open_sink("s3://bucket", storage_options=KEYS), ObstoreSink)
            assert carried[region] is (partition["dnsSuffix"] == "amazonaws.com"), region
            elsewhere = open_sink("s3://bucket", storage_options={**KEYS, "endpoint_url": "http://localhost:1"})
            assert isinstance(elsewhere, ObstoreSink)
    assert carried["us-gov-west-1"]
    assert not carried["cn-north-1"]


@pytest.mark.parametrize(
    ("options", "connection"),
    [
        (AZURE, None),
        (AZURE, "AccountName=other;AccountKey=a2V5"),
        ({**AZURE, "connection_string": "AccountName=third;AccountKey=a2V5"}, "AccountName=other;AccountKey=a2V5"),
    ],
)
def test_the_host_is_that_of_the_account_which_both_carriers_use(
    options: dict[str, Any], connection: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if connection is not None:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    by_obstore, by_fsspec = open_sink("az://container", storage_options=options), FsspecSink("az://container", options)
    assert isinstance(by_obstore, ObstoreSink)
    with by_fsspec._client() as fs:
        assert fs.service_client.url.rstrip("/") == by_fsspec.host
    assert by_obstore._settings.endpoint == by_obstore.host == by_fsspec.host


@pytest.mark.parametrize("scheme", PROTOCOLS)
def test_the_names_in_fsspecs_configuration_are_those_of_the_implementation(scheme: str) -> None:
    kind = get_filesystem_class(scheme)
    assert set(PROTOCOLS[scheme]) == set(kind.protocol)


def test_without_obstore_fsspec_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    assert isinstance(open_sink("s3://bucket", storage_options=S3), FsspecSink)


def test_google_needs_a_key_file(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    file.write_text("{}")
    assert google.settings("gs://bucket/a", {}, {}) is None
    assert google.settings("gs://bucket/a", {"token": "anon"}, {}) is None
    for options, environ in (({"token": str(file)}, {}), ({}, {"GOOGLE_APPLICATION_CREDENTIALS": str(file)})):
        found = google.settings("gs://bucket/a", options, environ)
        assert found is not None
        assert (found.bucket, found.root, found.config) == ("bucket", "a", {"application_credentials": str(file)})


@pytest.mark.parametrize(
    ("module", "stub"), [(s3, "_aws.pyi"), (azure, "_azure.pyi"), (google, "_gcs.pyi")], ids=["s3", "azure", "google"]
)
def test_every_variable_that_obstore_reads_is_accounted_for(module: Any, stub: str) -> None:
    import obstore

    text = (Path(obstore.__file__).parent / "_store" / stub).read_text()
    read = set(re.findall(r"`((?:AWS|AZURE|GOOGLE)_[A-Z0-9_]+)`", text))
    assert len(read) > 5
    assert read <= module.UNDERSTOOD | module.HARMLESS | module.FOREIGN


@pytest.mark.parametrize(
    ("uri", "options"),
    [("az://container", {"connection_string": "AccountName=a;AccountKey=not base64!"})],
)
def test_a_malformed_secret_is_not_repeated(uri: str, options: Mapping[str, Any]) -> None:
    sink = open_sink(uri, storage_options=options)
    with pytest.raises(ConfigError) as caught:
        sink.stat(KEY)
    assert "base64!" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.once
@pytest.mark.parametrize("first", ["obstore", "fsspec"])
@pytest.mark.parametrize("store", ["s3", "az"])
def test_each_carrier_reads_what_the_other_wrote(
    moto: S3Server, bucket: str, azurite: Azurite, store: str, first: str
) -> None:
    uri = f"s3://{bucket}/both {first}" if store == "s3" else f"az://stagesink/both {first}"
    options = moto.options() if store == "s3" else {"connection_string": azurite.connection_string}
    sinks: list[ArtifactSink] = [open_sink(uri, storage_options=options), FsspecSink(uri, options)]
    assert isinstance(sinks[0], ObstoreSink)
    writer, reader = sinks if first == "obstore" else reversed(sinks)
    cut = "?#" if store == "az" else "?"  # what fsspec's implementations take for the end of a name
    keys = {ArtifactKey("run", path) for path in NAMES.values() if not set(cut) & set(path)}
    for key in keys:
        stored = writer.put(key, MemorySource(key.path.encode()))
        assert reader.open(key).read() == key.path.encode()
        found = reader.stat(key)
        assert found is not None
        assert (found.uri, found.size) == (stored.uri, stored.size)
    assert {stored.key for stored in reader.list("run")} == keys
    for key in keys:
        reader.delete(key)
    assert list(writer.list("run")) == []


def test_a_pickled_sink_is_carried_as_its_new_place_allows(sink: ArtifactSink, monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = pickle.dumps(sink)
    assert isinstance(pickle.loads(pickled), ObstoreSink)
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert isinstance(pickle.loads(pickled), FsspecSink)


_FORKS = """
import os, sys
from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.sinks import open_sink
uri, options = sys.argv[1], eval(sys.argv[2])
sink = open_sink(uri, storage_options=options)
sink.put(ArtifactKey("run", "parent"), MemorySource(b"1"))
for number in range(3):
    pid = os.fork()
    if pid == 0:
        sink.put(ArtifactKey("run", f"child {number}"), MemorySource(b"2"))
        open_sink(uri, storage_options=options).put(ArtifactKey("run", f"child {number} anew"), MemorySource(b"3"))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    sink.put(ArtifactKey("run", "parent"), MemorySource(b"4"))
print(len(list(sink.list("run"))))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_children_neither_hang_nor_harm_their_parent(moto: S3Server, sink: ArtifactSink) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _FORKS, sink.uri, repr(moto.options())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout.strip()) == (0, "7"), done.stderr


_DROPS = """
import gc, os, sys, weakref
from obstore.store import AzureStore
from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.sinks import open_sink
from stagesink.sinks.obstore.reader import ObjectReader

def garbage(*, closed):
    sink = open_sink(sys.argv[1], storage_options=eval(sys.argv[2]))
    sink.put(ArtifactKey("run", "object"), MemorySource(bytes(1 << 22)))
    reader = sink.open(ArtifactKey("run", "object"))
    reader.read(1)
    if closed:
        sink.close()
    sink.cycle = sink, reader

gc.disable()
garbage(closed=False)
garbage(closed=True)
owned = [weakref.ref(found) for found in gc.get_objects() if isinstance(found, (AzureStore, ObjectReader))]
assert len(owned) == 4, owned
pid = os.fork()
if pid == 0:
    gc.collect()
    os._exit(sum(dropped() is None for dropped in owned))
assert os.waitpid(pid, 0)[1] == 0
gc.collect()
assert all(dropped() is None for dropped in owned)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_drops_nothing_of_its_parents_obstore(azurite: Azurite) -> None:
    options = {"connection_string": azurite.connection_string}
    command = [sys.executable, "-W", "ignore", "-c", _DROPS, "az://stagesink/forks", repr(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_the_first_upload_in_the_background_finds_all_loaded(tmp_path: Path) -> None:
    environ = {
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "STAGESINK_OUTBOX_PATH": str(tmp_path / "outbox"),
    }
    assert python(LOADED, "s3://bucket/runs", **environ).stdout.split() == []


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "part"),
    [(0, 8 << 20), (8 << 20, 8 << 20), (80_000 << 20, 8 << 20), ((80_000 << 20) + 1, 9 << 20), (None, 12 << 20)],
)
def test_no_object_has_more_than_ten_thousand_parts(size: int | None, part: int) -> None:
    assert part_bytes(size) == part
    assert size is None or -(-size // part) <= 10_000


def test_small_objects_go_in_one_request(proxied: ArtifactSink, proxy: FaultProxy) -> None:
    proxied.put(KEY, MemorySource(b"x"))  # asks, once a minute, how the bucket encrypts
    proxy.forget()
    for size in (0, 1000, PART_BYTES):
        proxied.put(KEY, GeneratedSource(size))
    assert [method for method, _ in proxy.requests] == ["PUT"] * 3


def test_writers_notes_are_listed_by_one_request(proxied: ArtifactSink, proxy: FaultProxy) -> None:
    assert isinstance(proxied, NotingSink)
    notes, key = proxied.notes(), ArtifactKey("run", ".stagesink/turn.a.-.me.1.1")
    notes.put(key, MemorySource(b"x"))
    proxy.forget()
    assert [stored.key for stored in notes.list("run", ".stagesink")] == [key]
    assert [method for method, _ in proxy.requests] == ["GET"]
    notes.delete(key)
    assert list(notes.list("run", ".stagesink")) == []


@pytest.mark.parametrize("sized", [True, False])
def test_many_large_objects_at_once_share_one_budget(moto: S3Server, bucket: str, sized: bool) -> None:
    sink = open_sink(f"s3://{bucket}/budget", storage_options=moto.options())
    sink.put(KEY, MemorySource(b"x"))
    with PeakMemory() as taken, ThreadPoolExecutor(6) as pool:
        sources = (GeneratedSource(40 << 20, seed=number, sized=sized) for number in range(6))
        list(pool.map(lambda source: sink.put(ArtifactKey("run", f"{source.seed}"), source), sources))
    assert taken.peak < 132 << 20  # 96 MiB, and what obstore and the allocator keep


@pytest.mark.parametrize(
    "error", [SourceChanged("It changed."), OSError(5, "gone"), FileNotFoundError("gone")], ids=repr
)
@pytest.mark.parametrize("sized", [True, False])
def test_a_source_that_fails_leaves_no_unfinished_upload(
    proxied: ArtifactSink, proxy: FaultProxy, error: Exception, sized: bool
) -> None:
    with pytest.raises(type(error)) as caught:
        proxied.put(KEY, GeneratedSource(40 << 20, sized=sized, fails_after=30 << 20, error=error))
    assert caught.value is error
    assert begun_and_aborted(proxy) == (1, 1)
    assert proxied.stat(KEY) is None


@pytest.mark.parametrize("off", [-1, 1])
@pytest.mark.parametrize("size", [1000, 20 << 20])
def test_a_source_of_another_size_than_it_says_does_not_land(
    proxied: ArtifactSink, proxy: FaultProxy, size: int, off: int
) -> None:
    class Liar(GeneratedSource):
        @property
        def size(self) -> int:
            return self.length + off

    with pytest.raises(SourceChanged):
        proxied.put(KEY, Liar(size))
    assert proxied.stat(KEY) is None
    begun, aborted = begun_and_aborted(proxy)
    assert begun == aborted == (size > PART_BYTES)


def test_an_upload_that_fails_in_a_part_is_aborted(proxied: ArtifactSink, proxy: FaultProxy) -> None:
    proxy.plan(Answer(500), method="PUT", path="partNumber=2")
    with pytest.raises(TransientSinkError):
        proxied.put(KEY, GeneratedSource(2 * PART_BYTES + 1))
    assert begun_and_aborted(proxy) == (1, 1)


def test_blocks_that_a_killed_process_left_are_invisible_and_do_no_harm(azurite: Azurite) -> None:
    from azure.storage.blob import BlobClient

    sink = open_sink("az://stagesink/blocks", storage_options={"connection_string": azurite.connection_string})
    with BlobClient.from_connection_string(azurite.connection_string, "stagesink", f"blocks/{KEY}") as blob:
        blob.stage_block(uuid.uuid4().hex, b"left by a process that was killed")
        assert list(sink.list("run")) == []
        source = GeneratedSource(20 << 20)
        assert sink.put(KEY, source).size == source.length
        assert blob.get_block_list("uncommitted")[1] == []
    with sink.open(KEY) as stream:
        assert hashlib.sha256(stream.read()).hexdigest() == source.digest()


def test_what_killed_processes_left_is_swept(moto: S3Server, bucket: str, sink: ArtifactSink) -> None:
    name = begin_upload(moto, bucket, sink)
    theirs = open_sink(f"{sink.uri}-theirs", storage_options=moto.options())
    begin_upload(moto, bucket, theirs)
    kept = sink.put(KEY, MemorySource(b"kept"))
    assert isinstance(sink, SweepingSink)
    assert sink.sweep(timedelta(days=365 * 100)) == []  # moto's uploads all begin in 2010
    assert sink.sweep(timedelta(days=1)) == [f"s3://{bucket}/{name}"]
    assert unfinished(moto, bucket, sink) == [name.replace("/run/", "-theirs/run/")]
    assert sink.stat(KEY) == kept
    assert isinstance(theirs, SweepingSink)
    assert len(theirs.sweep(timedelta(days=1))) == 1


def test_a_client_that_drops_the_slash_of_a_folder_sweeps_nobody_elses(
    moto: S3Server, bucket: str, sink: ArtifactSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As s3fs did up to 2025.12."""
    from s3fs import S3FileSystem

    split = S3FileSystem.split_path
    monkeypatch.setattr(S3FileSystem, "split_path", lambda self, path: split(self, path.rstrip("/")))
    name = begin_upload(moto, bucket, sink)
    theirs = open_sink(f"{sink.uri}-theirs", storage_options=moto.options())
    begin_upload(moto, bucket, theirs)
    assert isinstance(sink, SweepingSink)
    assert sink.sweep(timedelta(days=1)) == [f"s3://{bucket}/{name}"]
    assert isinstance(theirs, SweepingSink)
    assert len(theirs.sweep(timedelta(days=1))) == 1


@pytest.mark.parametrize("uri", ["gs://bucket/a", "az://container/a"])
def test_other_stores_are_not_looked_through(uri: str, tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    file.write_text("{}")
    options = {"token": str(file)} if uri.startswith("gs") else AZURE
    by_obstore = open_sink(uri, storage_options=options)
    assert isinstance(by_obstore, ObstoreSink)
    by_fsspec = FsspecSink(uri, {"token": "anon"} if uri.startswith("gs") else AZURE)
    for sink in (by_obstore, by_fsspec):
        assert isinstance(sink, SweepingSink)
        assert sink.sweep(timedelta(0)) is None


# -- digests -----------------------------------------------------------------------------------------------------------


def test_the_etag_is_the_md5_of_an_object_in_one_piece_alone(sink: ArtifactSink) -> None:
    small, large = GeneratedSource(1000), GeneratedSource(PART_BYTES + 1)
    assert sink.put(KEY, small).digests == {"md5": small.digest("md5")}
    assert sink.put(KEY, large).digests == {}
    assert sink.stat(KEY).digests == {}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "environ", "there"),
    [
        ({}, {}, True),
        ({}, {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_supported"}, True),
        ({}, {"AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED"}, False),
        ({"config_kwargs": {"request_checksum_calculation": "when_required"}}, {}, False),
    ],
)
def test_the_store_checks_and_keeps_the_sha256_of_each_part_unless_asked_not_to(
    moto: S3Server,
    bucket: str,
    options: dict[str, Any],
    environ: dict[str, str],
    there: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    sink = open_sink(f"s3://{bucket}/checksums", storage_options={**moto.options(), **options})
    assert isinstance(sink, ObstoreSink)
    source = GeneratedSource(PART_BYTES + 1000)
    sink.put(KEY, source)
    with source.open() as stream:
        data = b"".join(iter(lambda: stream.read(1 << 20), b""))
    parts = hashlib.sha256(data[:PART_BYTES]).digest() + hashlib.sha256(data[PART_BYTES:]).digest()
    of_the_parts = base64.b64encode(hashlib.sha256(parts).digest()).decode()
    told = moto.boto3().head_object(Bucket=bucket, Key=f"checksums/{KEY}", ChecksumMode="ENABLED")
    # S3 adds the number of parts, moto forgets it here.
    assert told.get("ChecksumSHA256", "").partition("-")[0] == (of_the_parts if there else "")


def test_a_store_that_refuses_checksums_is_told_how_to_be_reached(proxied: ArtifactSink, proxy: FaultProxy) -> None:
    proxy.plan(Answer(501), method="POST", path="uploads")
    with pytest.raises(TransientSinkError, match="AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        proxied.put(KEY, GeneratedSource(PART_BYTES + 1))


def test_the_etag_is_no_md5_where_the_bucket_encrypts_with_a_key_of_its_own(moto: S3Server) -> None:
    client = moto.boto3()
    client.create_bucket(Bucket="encrypted")
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "a-key"}}
    client.put_bucket_encryption(Bucket="encrypted", ServerSideEncryptionConfiguration={"Rules": [rule]})
    sink = open_sink("s3://encrypted/x", storage_options=moto.options())
    stored = sink.put(KEY, MemorySource(b"secret"))
    assert stored.digests == {}
    assert sink.stat(KEY) == stored


@pytest.fixture
def on_azure(azurite: Azurite, request: pytest.FixtureRequest) -> ObstoreSink:
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name)
    sink = open_sink(f"az://stagesink/{name}", storage_options={"connection_string": azurite.connection_string})
    assert isinstance(sink, ObstoreSink)
    return sink


def told_of(sink: ArtifactSink) -> list[dict[str, str]]:
    """Return the digests that a sink tells of the one object of its run, by each way to ask."""
    found = [sink.stat(KEY), *sink.list("run"), *sink.list("run", KEY.path), *sink.list("run", "folder")]
    return [dict(stored.digests) for stored in found if stored is not None]


def test_azure_tells_the_md5_of_an_object_in_one_piece_alone_whoever_asks(
    on_azure: ObstoreSink, azurite: Azurite
) -> None:
    by_fsspec = FsspecSink(on_azure.uri, {"connection_string": azurite.connection_string})
    for size, told in ((1000, True), (PART_BYTES, True), (PART_BYTES + 1, False)):
        source = GeneratedSource(size)
        assert on_azure.put(KEY, source).digests == {}  # obstore does not hand it on
        digests = {"md5": source.digest("md5")} if told else {}
        assert told_of(on_azure) == told_of(by_fsspec) == [digests] * 4


def test_receipts_of_an_upload_to_azure_name_the_md5(on_azure: ObstoreSink, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}").write_bytes(b"x" * number)
    receipts = Transfer(on_azure).run(plan_tree("run", "tree", tmp_path))
    (alone,) = Transfer(on_azure).run(plan_file("run", "alone", tmp_path / "3"))
    assert [receipt.verified_by for receipt in (*receipts, alone)] == ["md5"] * 5


def test_azures_listing_is_read_page_by_page_with_names_as_they_are(
    on_azure: ObstoreSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ["a & b", "a<b>", "&amp;", "'q\"", "ü/模型", "%41", "x+y", "z"]
    for path in paths:
        on_azure.put(ArtifactKey("run", path), MemorySource(path.encode()))
    pages: list[bytes] = []
    look = on_azure._client().look
    monkeypatch.setattr(look, "page", lambda *asked: pages.append(b"") or small_page(look, *asked))
    found = {stored.key.path: stored.digests["md5"] for stored in on_azure.list("run")}
    assert found == {path: hashlib.md5(path.encode()).hexdigest() for path in paths}
    assert len(pages) == 3


def small_page(look: Look, prefix: str, marker: str, doing: str) -> look_at.Answer:
    following = {"marker": marker} if marker else {}
    return look._list(doing, whole=True, prefix=prefix, maxresults="3", **following)


PAGE = b"""<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>
<Blob><Name>root/folder</Name><Properties><ResourceType>directory</ResourceType><Content-Length>0</Content-Length>
</Properties></Blob><Blob><Name Encoded="true">root/a%EF%BF%BE</Name><Properties><Content-Length>7</Content-Length>
<Content-MD5>not one</Content-MD5></Properties></Blob><Blob><Name>root/b</Name><Properties>
<Content-Length>8</Content-Length><Content-MD5 /></Properties></Blob></Blobs><NextMarker /></EnumerationResults>"""


class Canned:
    """Answers one page."""

    def __init__(self, *answers: look_at.Answer) -> None:
        self.answers = list(answers)

    def page(self, prefix: str, marker: str, doing: str) -> look_at.Answer:
        return self.answers.pop(0)


def test_folders_of_a_hierarchical_namespace_are_no_objects_and_names_may_be_encoded() -> None:
    canned: Any = Canned(look_at.Answer(200, {"etag": ""}, body=PAGE))
    assert list(listed(canned, "root/", "It")) == [("root/a\ufffe", 7, {}), ("root/b", 8, {})]


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, {}, PAGE),
        (200, {"etag": ""}, b"<html/>"),
        (200, {"etag": ""}, b"<EnumerationResults><Blob><Name>x</Name></Blob>"),
        (404, {"etag": ""}, b""),
    ],
)
def test_what_is_no_listing_of_azures_is_an_error(status: int, headers: dict[str, str], body: bytes) -> None:
    canned: Any = Canned(look_at.Answer(status, headers, body=body))
    with pytest.raises(SinkError, match="something else than the store"):
        list(listed(canned, "root/", "It"))


def test_a_listing_that_goes_round_is_an_error() -> None:
    page = b"<EnumerationResults><Blobs /><NextMarker>2!a&amp;b</NextMarker></EnumerationResults>"
    canned: Any = Canned(*[look_at.Answer(200, {"etag": ""}, body=page)] * 3)
    with pytest.raises(SinkError, match="something else than the store"):
        list(listed(canned, "root/", "It"))


@pytest.mark.parametrize("clock", ["time", "monotonic"], ids=["one stands while a machine sleeps", "one is set back"])
def test_a_signature_is_made_anew_when_either_clock_says_so(monkeypatch: pytest.MonkeyPatch, clock: str) -> None:
    sas = ContainerSas("acct", "a2V5", "container")
    first = sas.query()
    assert sas.query() is first
    now = getattr(time, clock)()
    monkeypatch.setattr(time, clock, lambda: now + 1000)
    sas.query()
    assert sas._made is not None
    assert getattr(time, clock)() in sas._made[1:]


def test_a_signature_has_a_start_that_a_slow_clock_has_passed_and_an_end() -> None:
    sent = dict(parse_qsl(ContainerSas("acct", "a2V5", "container").query()))
    starts, ends = (datetime.strptime(sent[name], "%Y-%m-%dT%H:%M:%S%z").timestamp() for name in ("st", "se"))
    assert starts < time.time() - 800
    assert time.time() + 3500 < ends < time.time() + 3700


# -- what others do there ----------------------------------------------------------------------------------------------


def test_names_that_obstore_cannot_say_do_not_spoil_a_listing(moto: S3Server, bucket: str, sink: ArtifactSink) -> None:
    root = f"{sink.uri.removeprefix(f's3://{bucket}/')}/run"
    for name in ("folder/", "a//b", "back\\slash", "./x"):
        moto.boto3().put_object(Bucket=bucket, Key=f"{root}/{name}", Body=b"")
    keys = [ArtifactKey("run", path) for path in ("0", "folder/object.bin", "folder/x", "z")]
    for key in keys:
        sink.put(key, MemorySource(b"x"))
    assert sorted(stored.key for stored in sink.list("run")) == sorted(keys)
    assert sorted(stored.key for stored in sink.list("run", "folder")) == sorted(keys[1:3])


def test_a_bucket_that_does_not_exist(moto: S3Server) -> None:
    sink = open_sink("s3://nowhere", storage_options=moto.options())
    for size in (10, PART_BYTES + 1):
        with pytest.raises(RunNotFound, match="Create the bucket"):
            sink.put(KEY, GeneratedSource(size))
    with pytest.raises(RunNotFound, match="NoSuchBucket"):
        list(sink.list("run"))
    gc.collect()
