"""What the conformance suite cannot know: errors of real servers, secrets, digests, names and options."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import pytest
from faults.proxy import Answer, DropReply, FaultProxy, Reset
from servers import FtpServer, S3Server, botocore_session, closed_port, installed

from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import (
    ArtifactNotFound,
    ConfigError,
    MissingExtra,
    RunNotFound,
    SinkAuthError,
    SinkConflict,
    SinkError,
    SinkQuotaError,
    SourceChanged,
    TransientSinkError,
    UnknownScheme,
)
from stagesink.sinks import open_sink
from stagesink.sinks._backend_errors import sink_error
from stagesink.sinks._http.status import kind_of_status, retry_after_seconds
from stagesink.sinks.fsspec import FsspecSink
from stagesink.sinks.fsspec.info import digests_of
from stagesink.sinks.fsspec.sink import PART_BYTES, _part_bytes
from stagesink.sinks.local import LocalSink
from stagesink.testing import GeneratedSource

KEY = ArtifactKey("run", "folder/object.bin")


@pytest.fixture
def s3(moto: S3Server, bucket: str, request: pytest.FixtureRequest) -> FsspecSink:
    return FsspecSink(f"s3://{bucket}/{request.node.name}", {**moto.options(), "session": botocore_session()})


@pytest.fixture
def proxy(moto: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(moto.port) as proxy:
        yield proxy


@pytest.fixture
def proxied(moto: S3Server, bucket: str, proxy: FaultProxy, request: pytest.FixtureRequest) -> FsspecSink:
    options = {**moto.options(port=proxy.port), "session": botocore_session()}
    return FsspecSink(f"s3://{bucket}/{request.node.name}", options)


def drain(stream: BinaryIO) -> None:
    while stream.read(1 << 20):
        pass


def unfinished_uploads(moto: S3Server, bucket: str) -> list[Any]:
    found: list[Any] = moto.boto3().list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    return found


# -- S3, seen by another client ----------------------------------------------------------------------------------------


def test_another_client_reads_what_was_put(moto: S3Server, bucket: str, s3: FsspecSink) -> None:
    source = GeneratedSource(PART_BYTES + 100)
    s3.put(KEY, source)
    path = f"{s3.uri.removeprefix(f's3://{bucket}/')}/{KEY}"
    body = moto.boto3().get_object(Bucket=bucket, Key=path)["Body"].read()
    assert hashlib.sha256(body).hexdigest() == source.digest()


def test_an_object_that_another_client_put_is_read(moto: S3Server, bucket: str, s3: FsspecSink) -> None:
    path = f"{s3.uri.removeprefix(f's3://{bucket}/')}/{KEY}"
    moto.boto3().put_object(Bucket=bucket, Key=path, Body=b"theirs")
    assert s3.open(KEY).read() == b"theirs"
    assert [stored.key for stored in s3.list("run")] == [KEY]


def test_objects_with_names_that_no_key_can_have_are_not_listed(moto: S3Server, bucket: str, s3: FsspecSink) -> None:
    root = f"{s3.uri.removeprefix(f's3://{bucket}/')}/run"
    for name in ("folder/", "a//b", "back\\slash"):
        moto.boto3().put_object(Bucket=bucket, Key=f"{root}/{name}", Body=b"")
    s3.put(KEY, MemorySource(b"x"))
    assert [stored.key for stored in s3.list("run")] == [KEY]


def test_a_source_that_fails_leaves_no_unfinished_upload(moto: S3Server, bucket: str, s3: FsspecSink) -> None:
    with pytest.raises(SourceChanged):
        s3.put(KEY, GeneratedSource(30 << 20, fails_after=18 << 20, error=SourceChanged("It changed.")))
    assert unfinished_uploads(moto, bucket) == []
    assert s3.stat(KEY) is None


def test_an_upload_that_failed_in_its_second_part_is_aborted(
    moto: S3Server, bucket: str, proxied: FsspecSink, proxy: FaultProxy
) -> None:
    proxy.plan(Answer(500), method="PUT", path="partNumber=2")
    with pytest.raises(TransientSinkError):
        proxied.put(KEY, GeneratedSource(2 * PART_BYTES + 1))
    assert unfinished_uploads(moto, bucket) == []
    assert proxied.stat(KEY) is None


def test_an_abort_that_fails_does_not_hide_why(
    proxied: FsspecSink, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.plan(Answer(503, retry_after=7), method="PUT", path="partNumber=2")
    proxy.plan(Answer(500), method="DELETE")
    with caplog.at_level(logging.WARNING), pytest.raises(TransientSinkError) as caught:
        proxied.put(KEY, GeneratedSource(2 * PART_BYTES + 1))
    assert caught.value.retry_after == 7
    assert "unfinished upload" in caplog.text


# -- S3 behind a bad line ----------------------------------------------------------------------------------------------


def test_a_store_that_answers_503_ten_times_and_then_works(proxied: FsspecSink, proxy: FaultProxy) -> None:
    proxy.plan(Answer(503, retry_after=3), times=10, method="PUT")
    for _ in range(10):
        with pytest.raises(TransientSinkError) as caught:
            proxied.put(KEY, MemorySource(b"patience"))
        assert caught.value.retry_after == 3
    assert proxied.put(KEY, MemorySource(b"patience")).size == 8
    assert proxied.open(KEY).read() == b"patience"


@pytest.mark.parametrize("status", [500, 503, 429])
def test_the_sink_itself_never_tries_again(proxied: FsspecSink, proxy: FaultProxy, status: int) -> None:
    proxy.plan(Answer(status), times=5)
    with pytest.raises(TransientSinkError):
        proxied.put(KEY, MemorySource(b"once"))
    assert [method for method, _ in proxy.requests] == ["PUT"]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Answer(401), SinkAuthError),
        (Answer(403), SinkAuthError),
        (Answer(408), TransientSinkError),
        (Answer(409), SinkConflict),
        (Answer(413), SinkQuotaError),
        (Answer(429), TransientSinkError),
        (Answer(400), SinkError),
        (Answer(501), SinkError),
        (Answer(502), TransientSinkError),
        (Answer(504), TransientSinkError),
        (Answer(507), SinkQuotaError),
        (Reset(), TransientSinkError),
        (DropReply(), TransientSinkError),
    ],
    ids=repr,
)
def test_every_answer_has_its_class(proxied: FsspecSink, proxy: FaultProxy, fault: Any, kind: type[SinkError]) -> None:
    for call in (
        lambda: proxied.put(KEY, MemorySource(b"x")),
        lambda: proxied.stat(KEY),
        lambda: list(proxied.list("run")),
        lambda: proxied.delete(KEY),
    ):
        proxy.forget()
        proxy.plan(fault, times=9)
        with pytest.raises(SinkError) as caught:
            call()
        assert type(caught.value) is kind


def test_a_reply_that_was_lost_after_the_commit_is_transient_and_the_object_is_whole(
    proxied: FsspecSink, proxy: FaultProxy
) -> None:
    proxy.plan(DropReply(), times=2, method="PUT")  # HTTP itself lets a client send a PUT once more, and aiohttp does
    with pytest.raises(TransientSinkError):
        proxied.put(KEY, MemorySource(b"landed"))
    assert proxied.open(KEY).read() == b"landed"


def test_a_read_that_breaks_off_is_transient(proxied: FsspecSink, proxy: FaultProxy) -> None:
    proxied.put(KEY, GeneratedSource(3 * PART_BYTES))
    with proxied.open(KEY) as stream:
        stream.read(10)
        proxy.plan(Reset(), times=9)
        with pytest.raises(TransientSinkError):
            drain(stream)


# -- S3 that refuses ---------------------------------------------------------------------------------------------------


def test_a_bucket_that_does_not_exist_is_named(moto: S3Server) -> None:
    sink = FsspecSink("s3://no-such-bucket/folder", moto.options())
    for call in (
        lambda: sink.put(KEY, MemorySource(b"x")),
        lambda: sink.put(KEY, GeneratedSource(PART_BYTES + 1)),
        lambda: list(sink.list("run")),
    ):
        with pytest.raises(RunNotFound, match=r"no-such-bucket.*Create the bucket"):
            call()


def test_no_credentials_are_an_auth_error(moto: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    sink = FsspecSink("s3://bucket", {"endpoint_url": moto.endpoint, "client_kwargs": {"region_name": "us-east-1"}})
    with pytest.raises(SinkAuthError, match="credentials"):
        sink.put(KEY, MemorySource(b"x"))


def test_a_name_that_the_client_would_cut_is_refused(s3: FsspecSink) -> None:
    with pytest.raises(SinkError, match="cannot hold an object named"):
        s3.put(ArtifactKey("run", "model?versionId=abc"), MemorySource(b"x"))
    assert list(s3.list("run")) == []


# -- digests -----------------------------------------------------------------------------------------------------------


def test_the_etag_of_one_part_is_an_md5_and_that_of_two_is_none(s3: FsspecSink) -> None:
    small, large = MemorySource(b"small"), GeneratedSource(PART_BYTES + 1)
    assert s3.put(KEY, small).digests == {"md5": hashlib.md5(b"small").hexdigest()}
    assert s3.put(KEY, large).digests == {}


def test_the_etag_of_an_object_encrypted_with_kms_is_no_digest(moto: S3Server, bucket: str) -> None:
    options = {**moto.options(), "s3_additional_kwargs": {"ServerSideEncryption": "aws:kms"}}
    sink = FsspecSink(f"s3://{bucket}/kms", options)
    stored = sink.put(KEY, MemorySource(b"secret"))
    assert stored.digests == {}
    assert sink.stat(KEY) == stored


MD5 = "d41d8cd98f00b204e9800998ecf8427e"


@pytest.mark.parametrize(
    ("info", "digests"),
    [
        ({"ETag": f'"{MD5}"'}, {"md5": MD5}),
        ({"ETag": f'"{MD5}"', "ServerSideEncryption": "AES256"}, {"md5": MD5}),
        ({"ETag": f'"{MD5}"', "ServerSideEncryption": "aws:kms:dsse"}, {}),
        ({"ETag": f'"{MD5}"', "SSECustomerAlgorithm": "AES256"}, {}),
        ({"ETag": f'"{MD5}"', "bucket": "fast--use1-az4--x-s3"}, {}),
        ({"ETag": f'"{MD5}-2"'}, {}),
        ({"md5Hash": "1B2M2Y8AsgTpgAmY7PhCfg==", "crc32c": "AAAAAA=="}, {"md5": MD5, "crc32c": "00000000"}),
        ({"size": 3}, {}),
    ],
)
def test_digests_are_what_the_store_computed(info: dict[str, Any], digests: dict[str, str]) -> None:
    assert digests_of(info) == digests


# -- by rename ---------------------------------------------------------------------------------------------------------


def test_a_leftover_of_a_killed_process_is_not_listed(tmp_path: Path) -> None:
    sink = FsspecSink(f"local://{tmp_path}")
    sink.put(KEY, MemorySource(b"x"))
    (tmp_path / "run/folder" / ".uploading-0123.tmp").write_bytes(b"half")
    assert [stored.key for stored in sink.list("run")] == [KEY]


def test_the_file_sink_leaves_alone_what_is_being_written(tmp_path: Path) -> None:
    sink = FsspecSink(f"local://{tmp_path}")
    others: list[LocalSink] = []

    def meanwhile(_: int) -> None:
        if not others:
            others.append(LocalSink(tmp_path))
            others[0].put(ArtifactKey("run", "folder/other"), MemorySource(b"theirs"))

    sink.put(KEY, MemorySource(b"ours"), on_bytes=meanwhile)
    assert sink.open(KEY).read() == b"ours"


def test_a_failed_put_leaves_no_file(tmp_path: Path) -> None:
    sink = FsspecSink(f"local://{tmp_path}")
    with pytest.raises(SourceChanged):
        sink.put(KEY, GeneratedSource(100_000, fails_after=70_000, error=SourceChanged("It changed.")))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_names_of_temporary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="temporary files"):
        FsspecSink(f"local://{tmp_path}").put(ArtifactKey("run", "a/.uploading-x.tmp"), MemorySource(b"x"))


def test_a_folder_is_never_replaced_or_filled(tmp_path: Path) -> None:
    sink = FsspecSink(f"local://{tmp_path}")
    sink.put(ArtifactKey("run", "a/b"), MemorySource(b"x"))
    with pytest.raises(SinkConflict, match="a folder stands there"):
        sink.put(ArtifactKey("run", "a"), MemorySource(b"y"))
    assert [path.name for path in (tmp_path / "run/a").iterdir()] == ["b"]


def test_a_full_disk_is_a_quota_error() -> None:
    error = sink_error(OSError(errno.ENOSPC, "No space left on device"), "x could not be put")
    assert type(error) is SinkQuotaError
    assert "No space left" in str(error)


def test_a_folder_that_cannot_be_read_is_an_error_and_not_left_out(tmp_path: Path, monkeypatch: Any) -> None:
    sink = FsspecSink(f"local://{tmp_path}")
    sink.put(KEY, MemorySource(b"x"))
    sink.put(ArtifactKey("run", "closed/x"), MemorySource(b"x"))
    scandir = os.scandir

    def refuse(path: Any) -> Any:  # root may read any folder, so permissions cannot show it
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("fsspec.implementations.local.os.scandir", refuse)
    with pytest.raises(SinkAuthError):
        list(sink.list("run"))


def test_a_relative_folder_is_pickled_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sink = FsspecSink("local://store")
    sink.put(KEY, MemorySource(b"x"))
    carried = pickle.dumps(sink)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(carried).stat(KEY) == sink.stat(KEY)
    assert (tmp_path / "store" / "run").is_dir()


# -- FTP ---------------------------------------------------------------------------------------------------------------


def test_a_wrong_password_is_an_auth_error_that_does_not_show_it(ftp: FtpServer) -> None:
    sink = FsspecSink(f"ftp://{ftp.user}:wrong-password@127.0.0.1:{ftp.port}/store")
    with pytest.raises(SinkAuthError) as caught:
        sink.stat(KEY)
    assert "wrong-password" not in "".join(traceback.format_exception(caught.value))


def test_a_connection_that_the_server_closed_is_not_used_twice(ftp: FtpServer) -> None:
    sink = FsspecSink(ftp.url)
    sink.put(KEY, MemorySource(b"x"))
    for connection in next(iter(sink._clients._free.values())):
        connection.ftp.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(SinkError):
        sink.stat(KEY)
    assert sink.stat(KEY) is not None
    sink.close()


# -- secrets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://bucket/folder/", "s3://bucket/folder"),
        ("s3://AKIA-12345:pw-12345/abc@bucket/x/", "s3://***@bucket/x"),
        ("ftp://user:pw-12345@host:2121/a/", "ftp://***@host:2121/a"),
        ("ftp://user@host/a@b", "ftp://***@host/a@b"),
        ("memory://x", "memory://x"),
    ],
)
def test_the_uri_shows_no_password(uri: str, shown: str) -> None:
    if uri.startswith("s3"):
        installed("s3fs")
    sink = FsspecSink(uri)
    assert sink.uri == shown
    assert "12345" not in f"{sink!r} {sink._address(KEY)}"


def test_no_secret_is_in_an_error_or_its_traceback(moto: S3Server) -> None:
    secrets = {"key": "AKIA-secret-one", "secret": "secret-two", "token": "token-three"}
    sink = FsspecSink("s3://bucket", {**moto.options(port=closed_port()), **secrets})
    with pytest.raises(TransientSinkError) as caught:
        sink.put(KEY, MemorySource(b"x"))
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(sink)
    for secret in secrets.values():
        assert secret not in shown


@pytest.mark.parametrize(
    "uri", ["ftp://user:s3cret/x@host/d", "webhdfs://user:s3cret#x@host", "sftp://user:s3cret/x@h/d"]
)
def test_a_uri_that_cannot_be_taken_apart_is_refused_without_repeating_it(uri: str) -> None:
    installed({"ftp": "fsspec", "webhdfs": "requests", "sftp": "paramiko"}[uri.partition(":")[0]])
    with pytest.raises(ConfigError, match=r"cannot be taken apart\. Percent-encode") as caught:
        FsspecSink(uri)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_password_in_a_uri_that_its_store_takes_for_a_bucket_is_in_no_error(moto: S3Server) -> None:
    sink = FsspecSink("s3://AKIAX:SECRET/abc@bucket/x", moto.options())
    for call in (lambda: sink.put(KEY, MemorySource(b"x")), lambda: sink.stat(KEY), lambda: list(sink.list("run"))):
        with pytest.raises(SinkError) as caught:
            call()
        told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert "SECRET" not in told
        assert "AKIAX" not in told


def test_a_defect_of_ours_is_not_taken_for_the_stores_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = FsspecSink(f"local://{tmp_path}")

    def defective(*_: Any) -> Any:
        raise KeyError("a defect")

    monkeypatch.setattr("stagesink.sinks.fsspec.sink.quiet_options", defective)
    with pytest.raises(KeyError, match="a defect"):
        sink.stat(KEY)


@pytest.mark.parametrize("uri", ["ftp:", "ftp:host/folder", "ftp:/host", "ftp://[user:secret@host"])
def test_a_uri_that_is_no_whole_url_is_refused_without_repeating_it(uri: str) -> None:
    with pytest.raises(ConfigError, match="needs a whole URL") as caught:
        FsspecSink(uri)
    assert "secret" not in str(caught.value)
    assert "ftp://HOST" in caught.value.hint


def test_a_query_in_the_uri_is_refused_without_repeating_it() -> None:
    installed("s3fs")
    with pytest.raises(ConfigError) as caught:
        FsspecSink("s3://bucket/folder?signature=abcdef")
    assert "abcdef" not in str(caught.value)


# -- opening -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "package", "extra"),
    [
        ("s3", "s3fs", "s3"),
        ("az", "adlfs", "az"),
        ("gs", "gcsfs", "gs"),
        ("sftp", "fsspec.implementations.sftp", "sftp"),
    ],
)
def test_a_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, scheme: str, package: str, extra: str
) -> None:
    fsspec_registry = sys.modules["fsspec.registry"]  # fsspec.registry is the mapping in it
    monkeypatch.setattr(fsspec_registry, "_registry", {})
    monkeypatch.setattr(fsspec_registry, "registry", {})
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'stagesink\[{extra}\]'"):
        open_sink(f"{scheme}://bucket/x")


def test_a_missing_package_without_an_extra_is_named_by_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boxfs", None)
    with pytest.raises(MissingExtra, match="boxfs"):
        open_sink("box://folder")


@pytest.mark.parametrize("uri", ["simplecache::s3://bucket/x", "zip://x::s3://bucket/a.zip"])
def test_chained_urls_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="Chained"):
        FsspecSink(uri)


def test_a_store_that_cannot_commit_atomically_is_refused() -> None:
    with pytest.raises(UnknownScheme, match="neither an atomic put nor a rename"):
        FsspecSink("zip://x.zip")


def test_a_bucket_is_needed() -> None:
    installed("s3fs")
    with pytest.raises(ConfigError, match="names no bucket"):
        FsspecSink("s3://")


def test_the_parts_of_an_object_are_never_too_many() -> None:
    assert _part_bytes(1) == PART_BYTES
    assert _part_bytes(None) > PART_BYTES
    five_tebibytes = 5 << 40
    assert five_tebibytes / _part_bytes(five_tebibytes) <= 10_000


# -- classes of errors -------------------------------------------------------------------------------------------------


class Answered(Exception):
    def __init__(self, **attributes: Any) -> None:
        super().__init__("https://account.example/?sig=do-not-show")
        self.__dict__.update(attributes)


class Headers:
    headers: ClassVar = {"Retry-After": "4"}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Answered(status_code=503, response=Headers()), TransientSinkError),  # azure
        (Answered(status=403), SinkAuthError),  # aiohttp
        (Answered(code="404"), ArtifactNotFound),  # gcsfs
        (Answered(status_code=404, error_code="ContainerNotFound"), RunNotFound),
        (Answered(response={"ResponseMetadata": {"HTTPStatusCode": 429}}), TransientSinkError),  # botocore
        (FileNotFoundError(2, "x"), ArtifactNotFound),
        (FileExistsError(17, "x"), SinkConflict),
        (IsADirectoryError(21, "x"), SinkConflict),
        (PermissionError(13, "x"), SinkAuthError),
        (OSError(errno.EDQUOT, "x"), SinkQuotaError),
        (OSError(errno.EBUSY, "x"), TransientSinkError),
        (OSError(errno.EIO, "x"), SinkError),
        (ConnectionResetError(104, "x"), TransientSinkError),
        (TimeoutError(), TransientSinkError),
        (EOFError(), TransientSinkError),
        (RuntimeError("anything"), SinkError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_exceptions_of_clients_have_their_class(error: Exception, kind: type[SinkError]) -> None:
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        found = sink_error(each, "x could not be put")
        assert type(found) is kind
        assert "do-not-show" not in str(found)


def test_what_the_server_asks_us_to_wait_is_kept() -> None:
    error = sink_error(Answered(status_code=503, response=Headers()), "x could not be put")
    assert isinstance(error, TransientSinkError)
    assert error.retry_after == 4


def test_a_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_seconds("120") == 120
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after_seconds("Wed, 21 Oct 2190 07:28:00 GMT") > 1e9  # type: ignore[operator]
    assert retry_after_seconds("soon") is None
    assert retry_after_seconds(None) is None


def test_a_success_is_no_error() -> None:
    assert kind_of_status(204) is None
