"""A store that sends us elsewhere is not told there who we are, whichever client carries the sink."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from faults.elsewhere import STATUSES, Elsewhere, assert_told_nothing, elsewhere, use
from faults.proxy import FaultProxy
from servers import free_port, installed

pytest.importorskip("obstore", reason="comes with the extras az, s3 and gs, from Python 3.11 on")

from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import SinkError
from stagesink.sinks import ArtifactSink, open_sink
from stagesink.sinks.fsspec import FsspecSink

KEY = "c2VjcmV0IHRoYXQgbm9ib2R5IHNlZXM="
TOKEN = "t0ken-that-nobody-sees"
SIGNATURE = "c2VjcmV0c2lnbmF0dXJl"
SAS = f"sv=2024-11-04&sp=rwdl&sr=c&sig={SIGNATURE}"


@pytest.fixture
def there() -> Iterator[Elsewhere]:
    with elsewhere() as found:
        yield found


def s3(port: int) -> dict[str, Any]:
    return {
        "key": "testing",
        "secret": KEY,
        "token": TOKEN,
        "endpoint_url": f"http://127.0.0.1:{port}",
        "client_kwargs": {"region_name": "us-east-1"},
    }


def az(port: int) -> dict[str, Any]:
    return {"connection_string": f"BlobEndpoint=http://127.0.0.1:{port}/me;AccountName=me;AccountKey={KEY}"}


def by_sas(port: int) -> dict[str, Any]:
    return {"connection_string": f"BlobEndpoint=http://127.0.0.1:{port}/me;AccountName=me;SharedAccessSignature={SAS}"}


STORES = {"s3": ("s3://stagesink/a", s3), "az": ("az://stagesink/a", az), "az by sas": ("az://stagesink/a", by_sas)}


def sent_elsewhere(there: Elsewhere, name: str, carrier: str, status: int) -> None:
    uri, options = STORES[name]
    installed("s3fs", "adlfs")
    with FaultProxy(free_port()) as proxy:
        proxy.plan(there.answer(status), times=1000)
        given = options(proxy.port)
        sink: ArtifactSink = FsspecSink(uri, given) if carrier == "fsspec" else open_sink(uri, storage_options=given)
        use(sink, "run")
        sink.close()
        sent = "\n".join([*map(str, proxy.requests), *map(str, proxy.headers)])
        assert len(proxy.requests) < 50  # five calls, and what each client tries
        assert "authorization" in sent or SIGNATURE in sent  # it was told who we are


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("carrier", ["obstore", "fsspec"])
@pytest.mark.parametrize("name", ["s3", "az"])
def test_no_key_and_no_signature_goes_elsewhere(there: Elsewhere, name: str, carrier: str, status: int) -> None:
    sent_elsewhere(there, name, carrier, status)
    assert_told_nothing(there, [KEY, "Signature=", "SharedKey"])


@pytest.mark.parametrize("status", STATUSES)
def test_no_shared_access_signature_goes_elsewhere(there: Elsewhere, status: int) -> None:
    sent_elsewhere(there, "az by sas", "whoever carries it", status)
    assert_told_nothing(there, [SIGNATURE])


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("carrier", ["fsspec", "whoever carries it"])
def test_no_session_token_goes_elsewhere(there: Elsewhere, carrier: str, status: int) -> None:
    sent_elsewhere(there, "s3", carrier, status)
    assert_told_nothing(there, [TOKEN])


def test_s3_that_sends_us_elsewhere_is_an_error_that_says_so(there: Elsewhere) -> None:
    installed("s3fs")
    with FaultProxy(free_port()) as proxy:
        proxy.plan(there.answer(307), times=1000)
        with pytest.raises(SinkError, match="sends us elsewhere") as caught:
            FsspecSink("s3://stagesink/a", s3(proxy.port)).put(ArtifactKey("run", "a"), MemorySource(b"x"))
        assert type(caught.value) is SinkError  # not one that is tried again
        assert [method for method, _ in proxy.requests] == ["PUT"]
