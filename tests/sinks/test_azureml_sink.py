"""The artifacts of runs in Azure ML: what is there, what is not, and who else sees it."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from azureml_lines import Job
from azureml_servers import Caller, get_blob, put_blob
from outside import python

pytest.importorskip("urllib3", reason="comes with the extra azureml")

from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import ArtifactNotFound, RunNotFound
from stagesink.sinks.azureml import AzureMLSink
from stagesink.sinks.protocol import TrackedSink
from stagesink.sinks.registry import open_sink
from stagesink.testing import GeneratedSource
from stagesink.transfer import Plan, Transfer, TransferOptions
from stagesink.transfer.notes import ALONE, Note, place_of
from stagesink.transfer.plan import PlannedObject

X = MemorySource(b"x")
MD5_OF_X = "9dd4e461268c8034f5c8564e155c67a6"


@pytest.fixture
def caller(job: Job) -> Caller:
    """Asks the service by plain HTTP, as others would."""
    return Caller(job.service, job.run_id, "an%20experiment")


def read(sink: AzureMLSink, key: ArtifactKey) -> bytes:
    with sink.open(key) as stream:
        return stream.read()


# -- where -------------------------------------------------------------------------------------------------------------


def test_a_new_object_takes_one_call_and_one_request(job: Job) -> None:
    job.sink.put(job.key(), MemorySource(b"x"))
    assert job.service.calls == ["register"]
    assert [method for method, _ in job.lines.store.requests] == ["PUT"]


def test_another_run_is_looked_up_once(job: Job) -> None:
    other = job.service.new_run("of someone else")
    for name in "abc":
        job.sink.put(ArtifactKey(other, name), MemorySource(b"x"))
    assert job.service.calls == ["tracking", "register", "register", "register"]
    assert {stored.key.path for stored in job.sink.list(other)} == {"a", "b", "c"}
    assert list(job.sink.list(job.run_id)) == []


@pytest.mark.parametrize("rest", ["", "/artifacts"])
def test_a_runs_uri_says_its_experiment(job: Job, rest: str) -> None:
    other = job.service.new_run("an other")
    workspace = job.sink.uri
    sink = open_sink(f"{workspace}/experiments/an%20other/runs/{other}{rest}")
    sink.put(ArtifactKey(other, "a"), MemorySource(b"x"))
    assert job.service.calls == ["register"]
    assert sink.uri == workspace
    sink.close()


def test_it_is_found_by_the_tracking_uri_alone(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AZUREML_RUN_ID",
        "AZUREML_ARM_SUBSCRIPTION",
        "AZUREML_ARM_PROJECT_NAME",
        "AZUREML_ARM_WORKSPACE_NAME",
    ):
        monkeypatch.delenv(name)
    # The endpoint stays: it says that this service speaks plain http.
    sink = open_sink("azureml:")
    assert sink.put(job.key(), MemorySource(b"x")).uri == job.sink.put(job.key(), MemorySource(b"x")).uri
    sink.close()


def test_an_object_says_where_it_is(job: Job) -> None:
    stored = job.sink.put(job.key("a b/ü.bin"), MemorySource(b"x"))
    of_run = f"experiments/an%20experiment/runs/{job.run_id}/artifacts"
    assert stored.uri == f"{job.sink.uri}/{of_run}/a b/ü.bin"


@pytest.mark.parametrize("call", ["put", "stat", "open", "list", "delete"])
def test_a_run_that_the_workspace_does_not_know(job: Job, call: str) -> None:
    key = ArtifactKey("no-such-run", "a")
    with pytest.raises(RunNotFound, match="Check the run id, and that it is a run of this workspace") as caught:
        _do(job.sink, call, key)
    assert "could not be looked up" in str(caught.value)


@pytest.mark.parametrize("call", ["put", "list"])
def test_a_jobs_own_run_that_is_gone(job: Job, call: str) -> None:
    del job.service.state.runs[job.run_id]
    with pytest.raises(RunNotFound, match="Check the run id"):
        _do(job.sink, call, job.key())


def _do(sink: AzureMLSink, call: str, key: ArtifactKey) -> None:
    if call == "put":
        sink.put(key, MemorySource(b"x"))
    elif call == "list":
        list(sink.list(key.run_id))
    else:
        getattr(sink, call)(key)


def test_it_tracks_runs(job: Job) -> None:
    assert isinstance(job.sink, TrackedSink)
    assert job.sink.tracks_runs
    assert job.sink.tracking_uri == job.sink.uri


# -- a path without a blob ---------------------------------------------------------------------------------------------


def test_a_path_with_no_blob_is_not_there(job: Job) -> None:
    job.service.register(job.run_id, "folder/a.bin")
    job.sink.put(job.key("folder/b.bin"), MemorySource(b"x"))
    assert job.sink.stat(job.key()) is None
    assert [stored.key.path for stored in job.sink.list(job.run_id)] == ["folder/b.bin"]
    with pytest.raises(ArtifactNotFound):
        job.sink.open(job.key())


def test_a_path_with_no_blob_can_still_be_put(job: Job) -> None:
    job.service.register(job.run_id, "folder/a.bin")
    stored = job.sink.put(job.key(), MemorySource(b"x"))
    assert (stored.size, stored.digests) == (1, {"md5": MD5_OF_X})
    assert job.service.calls == ["register", "write"]
    assert job.sink.stat(job.key()) == stored
    assert [stored.key for stored in job.sink.list(job.run_id)] == [job.key()]


def test_a_path_with_no_blob_can_be_removed(job: Job) -> None:
    job.service.register(job.run_id, "folder/a.bin")
    job.sink.delete(job.key())
    job.sink.put(job.key(), MemorySource(b"x"))
    assert job.service.calls == ["delete", "register"]


def test_a_writers_note_that_got_no_blob_is_removed_once_its_writer_is_dead(job: Job, caller: Caller) -> None:
    dead = python("from stagesink.transfer.alive import me; print(me())").stdout.strip()
    note = Note("turn", place_of(["f"]), ALONE, (dead, "token", "1"))
    job.service.register(job.run_id, note.path)
    Transfer(job.sink, TransferOptions(workers=1)).run(
        Plan(job.run_id, "f", "file", (PlannedObject(job.key("f"), X, 1),))
    )
    assert [artifact["path"] for artifact in caller.listed()] == ["f", "f.manifest.json"]
    assert [stored.key.path for stored in job.sink.list(job.run_id)] == ["f", "f.manifest.json"]


def test_a_put_that_fails_burns_no_path(job: Job) -> None:
    with pytest.raises(OSError, match="broken"):
        job.sink.put(job.key(), GeneratedSource(100_000, fails_after=50_000, error=OSError("broken")))
    assert job.sink.stat(job.key()) is None
    job.sink.put(job.key(), MemorySource(b"x"))
    assert read(job.sink, job.key()) == b"x"


def test_a_blob_with_no_path_is_not_there(job: Job) -> None:
    job.lines.client(job.key()).upload_blob(b"left behind")
    assert job.sink.stat(job.key()) is None
    assert list(job.sink.list(job.run_id)) == []


# -- others see the same -----------------------------------------------------------------------------------------------


def test_others_read_what_is_put(job: Job, caller: Caller) -> None:
    for number in range(9):  # more than one page
        job.sink.put(job.key(f"tree/{number}"), GeneratedSource(1000 + number))
    shown = {entry["path"]: entry["contentUri"] for entry in caller.listed("/prefix/contentinfo", path="tree")}
    assert set(shown) == {f"tree/{number}" for number in range(9)}
    for path, url in shown.items():
        status, data = get_blob(url)
        source = GeneratedSource(1000 + int(path[-1]))
        assert (status, data) == (200, source.read())
        properties = job.lines.client(job.key(path)).get_blob_properties()
        assert properties.size == source.length
        assert bytes(properties.content_settings.content_md5).hex() == source.digest("md5")
        assert properties.content_settings.content_type == "application/octet-stream"


def test_what_others_put_is_read(job: Job, caller: Caller) -> None:
    assert put_blob(caller.write_url("theirs"), b"x") == 201
    stored = job.sink.stat(job.key("theirs"))
    assert stored is not None
    assert (stored.size, stored.digests) == (1, {"md5": MD5_OF_X})
    assert read(job.sink, job.key("theirs")) == b"x"
    assert list(job.sink.list(job.run_id)) == [stored]


def test_blocks_that_others_put_without_a_checksum_have_none(job: Job) -> None:
    job.service.register(job.run_id, "theirs")
    client = job.lines.client(job.key("theirs"))
    client._config.max_single_put_size, client._config.max_block_size = 1000, 50_000  # what makes it send blocks
    client.upload_blob(b"x" * 100_000)
    stored = job.sink.stat(job.key("theirs"))
    assert stored is not None
    assert (stored.size, stored.digests) == (100_000, {})


def test_overwriting_what_others_put(job: Job, caller: Caller) -> None:
    put_blob(caller.write_url("theirs"), b"old")
    job.sink.put(job.key("theirs"), MemorySource(b"x"))
    assert read(job.sink, job.key("theirs")) == b"x"


def test_what_is_removed_is_gone_with_its_bytes(job: Job, caller: Caller) -> None:
    job.sink.put(job.key(), MemorySource(b"secret weights"))
    job.sink.delete(job.key())
    assert caller.listed() == []
    assert not job.lines.client(job.key()).exists()
    job.sink.delete(job.key())  # silent


# -- listing -----------------------------------------------------------------------------------------------------------


@pytest.mark.once
def test_a_listing_asks_for_pages_as_they_are_needed(job: Job) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: job.sink.put(job.key(f"{number:03}"), MemorySource(b"x")), range(280)))
    job.service.calls.clear()
    job.lines.store.forget()
    listing = job.sink.list(job.run_id)
    for _ in range(3):
        next(listing)
    assert job.service.calls.count("prefix") <= 20  # of 40 pages of seven
    listing.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stagesink-look")]
    assert len(job.lines.store.requests) < 200
    assert sorted(stored.key.path for stored in job.sink.list(job.run_id)) == [f"{number:03}" for number in range(280)]


def test_what_goes_while_it_is_listed_is_left_out(job: Job) -> None:
    """Its URL has ended, and there is no new one."""
    for name in ("a", "b", "c"):
        job.sink.put(job.key(name), MemorySource(b"x"))
    job.service.faults.bad_urls("expired", call="prefix", times=1)
    job.service.faults.answer(404, call="content")
    assert [stored.key.path for stored in job.sink.list(job.run_id)] == ["b", "c"]


def test_urls_of_a_listing_that_have_ended_are_renewed(job: Job) -> None:
    for name in ("a", "b"):
        job.sink.put(job.key(name), MemorySource(b"x"))
    job.service.faults.bad_urls("expired", call="prefix", times=2)
    assert [stored.key.path for stored in job.sink.list(job.run_id)] == ["a", "b"]


def test_names_that_are_none_of_ours_are_left_out_of_a_listing(job: Job) -> None:
    for path in ("a/../b", "//x", "ok"):
        job.service.register(job.run_id, path)
    job.sink.put(job.key("ok"), MemorySource(b"x"))
    assert [stored.key.path for stored in job.sink.list(job.run_id)] == ["ok"]


# -- itself ------------------------------------------------------------------------------------------------------------


def test_nothing_secret_is_shown(job: Job) -> None:
    stored = job.sink.put(job.key(), MemorySource(b"x"))
    token = job.lines.front.headers[0]["authorization"].partition(" ")[2]
    for text in (repr(job.sink), job.sink.uri, repr(stored), str(pickle.dumps(job.sink)), repr(vars(job.sink))):
        assert token not in text
        assert "sig=" not in text


def test_a_copy_means_the_same_where_the_environment_is_another(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.sink.put(job.key(), MemorySource(b"x"))
    pickled = pickle.dumps(job.sink)
    for name in ("AZUREML_ARM_WORKSPACE_NAME", "AZUREML_SERVICE_ENDPOINT", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "another")
    copy = pickle.loads(pickled)
    assert copy.uri == job.sink.uri
    assert read(copy, job.key()) == b"x"
    copy.close()


# -- proxies -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxies")
def test_no_proxy_holds_for_the_hosts_of_blobs(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy leads nowhere: whoever takes it fails."""
    from stagesink.errors import TransientSinkError

    for name in ("http_proxy", "https_proxy"):  # whatever the scheme of what might stand for the blobs' host
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    job.sink.put(job.key(), MemorySource(b"x"))
    monkeypatch.setenv("no_proxy", "blob.core.windows.net")
    with pytest.raises(TransientSinkError, match="cannot be reached"):
        open_sink("azureml:").put(job.key(), MemorySource(b"x"))


@pytest.mark.usefixtures("no_proxies")
def test_each_host_of_blobs_has_a_way_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib3 import ProxyManager

    from stagesink.sinks._http.pools import PoolsByHost

    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "inside.blob.core.windows.net")
    pools = PoolsByHost()
    for account in ("inside", "outside"):
        pools.pool_for(f"https://{account}.blob.core.windows.net/c/b?sig=x")
    kinds = {host: isinstance(pool, ProxyManager) for (_, host), pool in pools._pools.items()}
    assert kinds == {"inside.blob.core.windows.net": False, "outside.blob.core.windows.net": True}
