"""Blobs: written with checksums that the store checks, with URLs that end half-way, and read in ranges."""

from __future__ import annotations

import base64
import hashlib
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from azureml_lines import Job, Lines, job_on, lines_before
from faults.proxy import Answer, Delay, Fault, Reset
from outside import running, said

pytest.importorskip("urllib3", reason="comes with the extra azureml")

from stagesink.artifacts import MemorySource
from stagesink.errors import (
    ArtifactNotFound,
    SinkAuthError,
    SinkError,
    SourceChanged,
    TransientSinkError,
    VerificationError,
)
from stagesink.testing import GeneratedSource
from stagesink.testing.azureml import FakeAzureML

BLOCK = 8 << 20
LARGE = 2 * BLOCK + 4321


def blocks(job: Job) -> list[str]:
    return job.lines.blobs("PUT", part="comp=block&")


def md5s(job: Job) -> list[str]:
    pairs = zip(job.lines.store.requests, job.lines.store.headers, strict=True)
    return [
        headers.get("content-md5")
        for (method, target), headers in pairs
        if method == "PUT" and "blocklist" not in target
    ]


def holds(job: Job, source: GeneratedSource | MemorySource) -> bool:
    with source.open() as wanted, job.sink.open(job.key()) as stream:
        return hashlib.sha256(stream.read()).digest() == hashlib.sha256(wanted.read()).digest()


# -- writing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4 << 20])
def test_what_is_small_goes_in_one_request_with_its_checksum(job: Job, size: int) -> None:
    source = GeneratedSource(size)
    stored = job.sink.put(job.key(), source)
    assert len(job.lines.store.requests) == 1
    assert md5s(job) == [base64.b64encode(hashlib.md5(source.read()).digest()).decode()]
    assert stored.digests == {"md5": source.digest("md5")}


@pytest.mark.parametrize("sized", [True, False])
def test_what_is_large_goes_in_blocks_each_with_its_checksum_committed_at_once(job: Job, sized: bool) -> None:
    source = GeneratedSource(LARGE, sized=sized)
    stored = job.sink.put(job.key(), source)
    data = source.read()
    sums = [hashlib.md5(data[at : at + BLOCK]).digest() for at in range(0, LARGE, BLOCK)]
    assert sorted(md5s(job)) == sorted(base64.b64encode(digest).decode() for digest in sums)
    assert len(job.lines.blobs("PUT", part="comp=blocklist")) == 1
    assert (stored.size, stored.digests) == (LARGE, {})  # the store computes none of the whole
    assert job.sink.stat(job.key()) == stored
    assert holds(job, source)


class Corrupting:
    """Changes one bit of a body on its way."""

    def __init__(self, lines: Lines, part: str) -> None:
        self.store, self.part = lines.store, part

    def __enter__(self) -> None:
        forward = self.store._forward

        def changed(line: bytes, headers: dict[str, str], body: bytes) -> bytes:
            if line.startswith(b"PUT") and self.part.encode() in line and body:
                body = bytes([body[0] ^ 1]) + body[1:]
            return forward(line, headers, body)

        self.store._forward = changed  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        del self.store._forward


@pytest.mark.parametrize(("size", "part"), [(1000, ""), (LARGE, "comp=block&")])
def test_the_store_refuses_bytes_that_changed_on_their_way(job: Job, size: int, part: str) -> None:
    with Corrupting(job.lines, part), pytest.raises(VerificationError, match="400") as caught:
        job.sink.put(job.key(), GeneratedSource(size))
    assert caught.value.hint
    assert job.sink.stat(job.key()) is None
    assert list(job.sink.list(job.run_id)) == []


def test_a_block_list_that_changed_on_its_way_commits_nothing(job: Job) -> None:
    with Corrupting(job.lines, "comp=blocklist"), pytest.raises(SinkError, match="could not be put"):
        job.sink.put(job.key(), GeneratedSource(LARGE))
    assert job.sink.stat(job.key()) is None


def test_the_block_list_goes_with_its_checksum(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure holds it against the list. Azurite does not: there a list that changed and is well-formed lands."""
    forward, sent = job.lines.store._forward, []

    def noted(line: bytes, headers: dict[str, str], body: bytes) -> bytes:
        if b"comp=blocklist" in line and line.startswith(b"PUT"):
            sent.append((headers.get("content-md5"), base64.b64encode(hashlib.md5(body).digest()).decode()))
        return forward(line, headers, body)

    monkeypatch.setattr(job.lines.store, "_forward", noted)
    job.sink.put(job.key(), GeneratedSource(LARGE))
    ((said, true),) = sent
    assert said == true


def test_another_writer_that_commits_between_our_blocks(job: Job) -> None:
    """It takes our blocks with it: the put fails as one that may pass, and nothing is mixed."""
    theirs = GeneratedSource(1000, seed=9)
    client = job.lines.client(job.key())
    from azure.core.exceptions import ResourceNotFoundError
    from azure.storage.blob import BlobBlock

    sent = 0

    def some_of_ours_are_there() -> bool:
        with suppress(ResourceNotFoundError):
            return bool(client.get_block_list("uncommitted")[1])
        return False

    def intervene(count: int) -> None:
        nonlocal sent
        sent += count
        if sent == LARGE:
            while not some_of_ours_are_there():
                time.sleep(0.01)
            # By blocks, with names as long as ours: Azurite leaves others' blocks after a single put, Azure does not.
            client.stage_block("x" * 48, theirs.read())
            client.commit_block_list([BlobBlock("x" * 48)])

    with pytest.raises(TransientSinkError, match="InvalidBlockList"):
        job.sink.put(job.key(), GeneratedSource(LARGE), on_bytes=intervene)
    with job.sink.open(job.key()) as stream:
        assert stream.read() == theirs.read()
    ours = GeneratedSource(LARGE)
    job.sink.put(job.key(), ours)
    assert holds(job, ours)


A, B, C, D = (GeneratedSource(BLOCK, seed=seed).read() for seed in range(4))


@pytest.mark.once
@pytest.mark.parametrize("data", [(A + B, C + D), (A + B, A + C), (A + B, A + B)], ids=["others", "some", "same"])
def test_two_large_puts_of_one_key_leave_one_whole(job: Job, data: tuple[bytes, bytes]) -> None:
    sources = [MemorySource(each) for each in data]

    def put(source: MemorySource) -> None:
        for _ in range(20):
            try:
                job.sink.put(job.key(), source)
            except TransientSinkError:
                continue
            return

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(put, sources))
    assert any(holds(job, source) for source in sources)


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_source_that_is_not_as_long_as_it_said(job: Job, size: int, change: int) -> None:
    class Lying(GeneratedSource):
        @property
        def size(self) -> int:
            return size + change

    with pytest.raises(SourceChanged):
        job.sink.put(job.key(), Lying(size))
    assert job.sink.stat(job.key()) is None


# -- going on where another upload ended ------------------------------------------------------------------------------

UPLOAD = """
    import sys
    from stagesink.artifacts import ArtifactKey, FileSource
    from stagesink.sinks.registry import open_sink

    def count(more):
        global sent
        sent += more
        if sent == int(sys.argv[3]):
            sys.stdin.readline()

    sent = 0
    print("ready", flush=True)
    open_sink("azureml:").put(ArtifactKey(sys.argv[1], "folder/a.bin"), FileSource(sys.argv[2]), on_bytes=count)
"""


class _Stopped(Exception):
    pass


def stop_after(job: Job, source: GeneratedSource | MemorySource, size: int) -> None:
    """Leave an upload's first blocks at the store, and forget what was asked for them."""
    left = size

    def count(more: int) -> None:
        nonlocal left
        left -= more
        if left <= 0:
            raise _Stopped

    with pytest.raises(_Stopped):
        job.sink.put(job.key(), source, on_bytes=count)
    job.lines.forget()


def sent(job: Job) -> int:
    """Bytes of blocks that went to the store."""
    pairs = zip(job.lines.store.requests, job.lines.store.headers, strict=True)
    return sum(int(headers["content-length"]) for (_, target), headers in pairs if "comp=block&" in target)


def test_what_a_killed_process_had_sent_is_not_sent_again(job: Job, tmp_path: Path) -> None:
    source = GeneratedSource(5 * BLOCK + 4321)
    file = tmp_path / "a.bin"
    file.write_bytes(source.read())
    with running(UPLOAD, job.run_id, file, 3 * BLOCK) as upload:
        assert said(upload) == "ready"
        client = job.lines.client(job.key())
        from azure.core.exceptions import ResourceNotFoundError

        there: list[Any] = []
        while len(there) < 3:
            assert upload.poll() is None
            time.sleep(0.02)
            with suppress(ResourceNotFoundError):
                there = client.get_block_list("uncommitted")[1]
        upload.kill()
        assert upload.wait() == -signal.SIGKILL
    assert job.sink.stat(job.key()) is None
    job.lines.forget()
    counted: list[int] = []
    stored = job.sink.put(job.key(), source, on_bytes=counted.append)
    assert sent(job) == 2 * BLOCK + 4321
    assert (stored.size, sum(counted)) == (source.length, source.length)
    assert holds(job, source)
    assert client.get_block_list("uncommitted")[1] == []


@pytest.mark.once
@pytest.mark.parametrize(
    ("before", "after", "sends"),
    [
        (A + B + C, A + B + C, BLOCK),
        (A + B + C, A + D + C, 2 * BLOCK),
        (A + B + C, D + B + C, 2 * BLOCK),
        (A + B + C, B + A + C, 3 * BLOCK),  # what is elsewhere now counts as other bytes
        (A + B + C, A + B + C[:-1], BLOCK - 1),
        (A + B + C, A + B + C + D, 2 * BLOCK),
        (A + B, A + B, 2 * BLOCK),  # not worth the question
    ],
    ids=["same", "a later one", "the first", "exchanged", "shorter", "longer", "small"],
)
def test_of_a_file_that_changed_the_same_blocks_are_spared(job: Job, before: bytes, after: bytes, sends: int) -> None:
    stop_after(job, MemorySource(before), 2 * BLOCK)
    source = MemorySource(after)
    counted: list[int] = []
    assert job.sink.put(job.key(), source, on_bytes=counted.append).size == sum(counted) == len(after)
    assert sent(job) == sends
    assert holds(job, source)


def test_a_source_of_unknown_size_goes_on_too(job: Job) -> None:
    source = GeneratedSource(LARGE, sized=False)
    stop_after(job, source, 2 * BLOCK)
    job.sink.put(job.key(), source)
    assert sent(job) == 4321
    assert holds(job, source)


def test_a_new_attempt_of_the_same_process_goes_on_too(job: Job) -> None:
    source = GeneratedSource(LARGE)
    job.lines.store.plan(Answer(503), method="PUT", path="comp=blocklist")
    with pytest.raises(TransientSinkError):
        job.sink.put(job.key(), source)
    job.lines.forget()
    job.sink.put(job.key(), source)
    assert sent(job) == 0
    assert holds(job, source)


def test_what_was_committed_is_sent_again_so_that_it_mends(job: Job) -> None:
    source = GeneratedSource(LARGE)
    job.sink.put(job.key(), source)
    job.lines.forget()
    job.sink.put(job.key(), source)
    assert sent(job) == LARGE


def test_a_first_upload_asks_for_no_list(job: Job) -> None:
    job.sink.put(job.key(), GeneratedSource(LARGE))
    assert job.service.calls == ["register"]
    assert job.lines.blobs("GET") == []


@pytest.mark.parametrize("why", ["permission", "container"])
def test_where_the_list_may_not_be_read_all_is_sent(job: Job, why: Any) -> None:
    source = GeneratedSource(LARGE)
    stop_after(job, source, BLOCK)
    job.service.faults.bad_urls(why, call="content")
    job.sink.put(job.key(), source)
    assert job.service.faults.pending == 0
    assert sent(job) == LARGE
    assert holds(job, source)


IDS = {"x-ms-request-id": "1"}


@pytest.mark.parametrize(
    "answer",
    [Answer(200, body=b"<html>Please sign in</html>"), Answer(200, body=b"\xff", headers=IDS), Answer(400)],
    ids=["a page", "no list", "refused"],
)
def test_an_answer_that_is_no_list_costs_only_time(job: Job, answer: Answer) -> None:
    source = GeneratedSource(LARGE)
    stop_after(job, source, BLOCK)
    job.lines.store.plan(answer, method="GET", path="comp=blocklist")
    job.sink.put(job.key(), source)
    assert sent(job) == LARGE
    assert holds(job, source)


@pytest.mark.parametrize("fault", [Answer(503, retry_after=3), Reset()], ids=str)
def test_a_list_that_could_not_be_had_just_now_is_asked_for_again(job: Job, fault: Fault) -> None:
    source = GeneratedSource(LARGE)
    stop_after(job, source, 2 * BLOCK)
    job.lines.store.plan(fault, method="GET", path="comp=blocklist")
    with pytest.raises(TransientSinkError) as caught:
        job.sink.put(job.key(), source)
    assert caught.value.retry_after == getattr(fault, "retry_after", None)
    assert job.lines.blobs("PUT") == []
    job.lines.forget()
    job.sink.put(job.key(), source)
    assert sent(job) == 4321


def test_a_list_of_blocks_that_are_gone_commits_nothing(job: Job) -> None:
    """Another writer's commit drops them between the list and ours."""
    source = MemorySource(A + B + C)
    stop_after(job, source, 2 * BLOCK)
    client = job.lines.client(job.key())
    names = [f"{number:016d}{hashlib.md5(block).hexdigest()}".encode() for number, block in enumerate((A, B, C))]
    entries = (f"<Block><Name>{base64.b64encode(n).decode()}</Name><Size>{BLOCK}</Size></Block>" for n in names)
    body = f"<BlockList><UncommittedBlocks>{''.join(entries)}</UncommittedBlocks></BlockList>".encode()
    job.lines.store.plan(Answer(200, body=body, headers=IDS), method="GET", path="comp=blocklist")
    with pytest.raises(TransientSinkError, match="InvalidBlockList"):
        job.sink.put(job.key(), source)
    assert job.sink.stat(job.key()) is None
    assert len(client.get_block_list("uncommitted")[1]) == 2
    job.sink.put(job.key(), source)
    assert holds(job, source)


# -- URLs that end -----------------------------------------------------------------------------------------------------


def test_a_url_that_has_ended_is_renewed_once_for_all_parts(job: Job) -> None:
    job.service.faults.bad_urls("expired", call="register")
    source = GeneratedSource(LARGE)
    job.sink.put(job.key(), source)
    assert holds(job, source)
    assert job.service.calls.count("write") == 1
    # Those alone go again that were on their way at once.
    assert 4 <= len(blocks(job)) <= 6
    assert len(set(map(block_name, blocks(job)))) == 3


def block_name(target: str) -> str:
    return target.partition("blockid=")[2]


@pytest.mark.once
def test_a_url_that_ends_in_the_middle_does_not_start_the_object_again(
    azureml_service: FakeAzureML, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real signatures of four to five seconds, and a store that takes nearly as long for each of some blocks."""
    with lines_before(azureml_service, tmp_path, sas_seconds=5.0) as lines, job_on(lines, monkeypatch) as job:
        lines.store.plan(Delay(4.2), times=4, method="PUT")
        source = GeneratedSource(8 * BLOCK)
        counted: list[int] = []
        stored = job.sink.put(job.key(), source, on_bytes=counted.append)
        assert stored.size == source.length
        assert holds(job, source)
        assert sum(counted) == source.length
        assert job.service.calls.count("write") >= 1
        names = [block_name(target) for target in blocks(job)]
        assert len(set(names)) == 8
        assert len(names) <= 8 + 4 * job.service.calls.count("write")


def test_a_url_that_is_refused_again_is_an_error(job: Job) -> None:
    job.service.faults.bad_urls(times=99)
    with pytest.raises(SinkAuthError, match="403"):
        job.sink.put(job.key(), MemorySource(b"x"))
    assert job.service.calls == ["register", "write"]


def test_a_url_that_ends_while_it_is_read(job: Job) -> None:
    source = GeneratedSource(17 << 20)
    job.sink.put(job.key(), source)
    digest = hashlib.sha256()
    with job.sink.open(job.key()) as stream:
        digest.update(stream.read(1 << 20))
        body = b"<?xml version='1.0'?><Error><Code>AuthenticationFailed</Code></Error>"
        ended = Answer(403, body=body, headers={"x-ms-error-code": "AuthenticationFailed", "x-ms-request-id": "1"})
        job.lines.store.plan(ended, method="GET")
        job.service.calls.clear()
        while data := stream.read(1 << 20):
            digest.update(data)
    assert digest.hexdigest() == source.digest()
    assert job.service.calls == ["content"]


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def windows(job: Job) -> Iterator[Any]:
    def asked() -> list[str]:
        pairs = zip(job.lines.store.requests, job.lines.store.headers, strict=True)
        return [headers["x-ms-range"] for (method, _), headers in pairs if method == "GET"]

    return asked


def test_it_is_read_in_windows_of_one_version(job: Job, windows: Any) -> None:
    source = GeneratedSource(17 << 20)
    job.sink.put(job.key(), source)
    with job.sink.open(job.key()) as stream:
        assert hashlib.sha256(stream.read()).hexdigest() == source.digest()
    assert windows() == ["bytes=0-16777215", "bytes=16777216-33554431"]
    gets = [headers for headers in job.lines.store.headers if "x-ms-range" in headers]
    assert "if-match" not in gets[0]
    assert len({headers["if-match"] for headers in gets[1:]}) == 1


def test_one_that_is_replaced_while_it_is_read_is_noticed(job: Job) -> None:
    job.sink.put(job.key(), GeneratedSource(17 << 20, seed=1))
    stream = job.sink.open(job.key())
    stream.read(1000)
    job.sink.put(job.key(), GeneratedSource(17 << 20, seed=2))
    with pytest.raises(TransientSinkError, match="was replaced while it was read"):
        stream.read()
    stream.close()


def test_one_that_is_removed_while_it_is_read_is_noticed(job: Job) -> None:
    job.sink.put(job.key(), GeneratedSource(17 << 20))
    stream = job.sink.open(job.key())
    stream.read(1000)
    job.sink.delete(job.key())
    with pytest.raises((ArtifactNotFound, TransientSinkError)):
        stream.read()
    stream.close()


def test_a_stream_that_is_closed_early_leaves_a_usable_sink(job: Job) -> None:
    job.sink.put(job.key(), GeneratedSource(17 << 20))
    for _ in range(3):
        with job.sink.open(job.key()) as stream:
            assert len(stream.read(10)) == 10
    assert job.sink.stat(job.key()) is not None


def test_what_does_not_open_leaves_nothing_behind(job: Job) -> None:
    job.service.register(job.run_id, "burnt")
    with pytest.raises(ArtifactNotFound):
        job.sink.open(job.key("burnt"))
