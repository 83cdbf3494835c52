"""What the fake Azure ML does to order."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from azureml_servers import Caller, get_blob, put_blob, send

from stagesink.testing.azureml import FakeAzureML, Faults
from stagesink.testing.azureml.faults import Why

pytestmark = pytest.mark.once


@pytest.fixture
def faults(azureml_service: FakeAzureML) -> Iterator[Faults]:
    yield azureml_service.faults
    azureml_service.faults.clear()


def test_a_refusal_happens_as_often_as_ordered_and_to_the_call_that_is_named(caller: Caller, faults: Faults) -> None:
    faults.answer(503, times=2, call="list")
    assert caller.ask("GET", f"{caller.of_run}/contentinfo", path="nothing")[0] == 404
    assert [caller.ask("GET", caller.of_run)[0] for _ in range(3)] == [503, 503, 200]
    assert faults.pending == 0


def test_a_refusal_says_when_to_come_again(caller: Caller, faults: Faults) -> None:
    import http.client

    faults.answer(429, retry_after="7")
    service = caller.service
    assert service.certificates is not None
    context = service.certificates.client_context()
    connection = http.client.HTTPSConnection("127.0.0.1", service.port, context=context, timeout=60)
    connection.request("GET", caller.of_run)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
    assert b'"error"' in answer.read()
    connection.close()


def test_a_web_page_comes_with_status_200(caller: Caller, faults: Faults) -> None:
    faults.page()
    status, body = send("GET", caller.service.url + caller.of_run, None, {}, caller.service.ca_path)
    assert status == 200
    assert b"<html>" in body


def test_a_late_answer_is_the_true_one(caller: Caller, faults: Faults) -> None:
    faults.slow(0.05, call="list")
    before = time.monotonic()
    assert caller.ask("GET", caller.of_run)[0] == 200
    assert time.monotonic() - before >= 0.05  # a bound from below: a busy machine cannot break it


@pytest.mark.parametrize(("code", "errors"), [("ServiceError", ["b", "c"]), (None, [])])
def test_a_batch_can_be_done_in_part(caller: Caller, faults: Faults, code: str | None, errors: list[str]) -> None:
    faults.partial_batch(1, code=code)
    answer = caller.register("a", "b", "c")
    assert (list(answer["artifactContentInformation"]), list(answer["errors"])) == (["a"], errors)
    assert len(caller.register("b", "c")["artifacts"]) == 2


@pytest.mark.parametrize(
    ("why", "status"), [("signature", 403), ("expired", 403), ("early", 403), ("permission", 403), ("container", 404)]
)
def test_urls_can_be_bad(caller: Caller, faults: Faults, why: Why, status: int) -> None:
    faults.bad_urls(why, call="register")
    assert put_blob(caller.write_url("a"), b"bytes") == status
    assert put_blob(caller.write_url("b"), b"bytes") == 201
    faults.bad_urls(why, call="content")
    _, content = caller.ask("GET", f"{caller.of_run}/contentinfo", path="b")
    assert get_blob(content["contentUri"])[0] == status
