"""The fake Azure ML's calls about artifacts, asked by plain HTTP, with the bytes in a real Azurite."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from azureml_servers import PAGE, Caller, azureml_server, get_blob, put_blob

from stagesink.testing.azureml import FakeAzureML


@pytest.mark.parametrize("path", ["a.bin", "folder/a b.bin", "größe/100%.txt", "a#b?c=d&e+f", "metrics.json", "模型/x"])
def test_an_artifact_is_registered_written_and_read(caller: Caller, path: str) -> None:
    content = caller.register(path)["artifactContentInformation"][path]
    assert content["origin"] == "ExperimentRun"
    assert content["container"] == f"dcid.{caller.run_id}"
    assert put_blob(content["contentUri"], b"the bytes") == 201
    status, read = caller.ask("GET", f"{caller.of_run}/contentinfo", path=path)
    assert status == 200
    assert get_blob(read["contentUri"]) == (200, b"the bytes")
    assert caller.ask("GET", f"{caller.of_run}/artifacturi", path=path)[0] == 200


def test_one_path_of_a_batch_can_fail_alone(caller: Caller) -> None:
    caller.register("a")
    answer = caller.register("a", "b")
    assert list(answer["artifacts"]) == list(answer["artifactContentInformation"]) == ["b"]
    error = answer["errors"]["a"]["error"]
    assert error["code"] == "UserError"
    assert error["message"] == (f"Resource Conflict: ArtifactId ExperimentRun/dcid.{caller.run_id}/a already exists.")


def test_a_path_that_is_registered_gets_another_url(caller: Caller) -> None:
    caller.register("a")
    status, content = caller.ask("GET", f"{caller.of_store}/write", path="a")
    assert status == 200
    assert [put_blob(content["contentUri"], data) for data in (b"one", b"two")] == [201, 201]


def test_a_path_can_be_there_without_a_blob(caller: Caller) -> None:
    caller.service.register(caller.run_id, "a")
    assert "a" in caller.register("a")["errors"]
    status, content = caller.ask("GET", f"{caller.of_run}/contentinfo", path="a")
    assert status == 200
    assert get_blob(content["contentUri"])[0] == 404


def test_tags_are_kept(caller: Caller) -> None:
    body = {"paths": [{"path": "a", "tags": {"sha256": "0123"}}]}
    assert caller.ask("POST", f"{caller.of_run}/batch/metadata", body)[0] == 200
    status, artifact = caller.ask("GET", f"{caller.of_run}/metadata", path="a")
    assert status == 200
    assert artifact["tags"] == {"sha256": "0123"}
    assert artifact["artifactId"] == f"ExperimentRun/dcid.{caller.run_id}/a"
    assert artifact["dataPath"]["relativePath"] == artifact["artifactId"]


@pytest.mark.parametrize("many", [0, 1, PAGE, PAGE + 1, 3 * PAGE + 2])
def test_listings_come_in_pages(caller: Caller, many: int) -> None:
    paths = [f"folder/{number:03}" for number in range(many)]
    caller.register("folder.txt", *paths)
    assert [found["path"] for found in caller.listed("/path", path="folder/")] == paths
    assert [found["path"] for found in caller.listed("/prefix/contentinfo", path="folder/")] == paths
    assert sorted(found["path"] for found in caller.listed()) == sorted(["folder.txt", *paths])


def test_a_prefix_need_not_end_at_a_folder(caller: Caller) -> None:
    caller.register("check/a", "checkpoint/a", "b")
    assert [found["path"] for found in caller.listed("/path", path="check")] == ["check/a", "checkpoint/a"]


def test_urls_of_a_prefix_read(caller: Caller) -> None:
    assert put_blob(caller.write_url("folder/a"), b"bytes") == 201
    (found,) = caller.listed("/prefix/contentinfo", path="folder/")
    assert get_blob(found["contentUri"]) == (200, b"bytes")


def test_what_is_deleted_between_two_pages_hides_nothing(caller: Caller) -> None:
    caller.register(*(f"{number:02}" for number in range(2 * PAGE)))
    _, page = caller.ask("GET", caller.of_run)
    for artifact in page["value"]:
        assert caller.ask("DELETE", f"{caller.of_store}/metadata", path=artifact["path"])[0] == 200
    _, rest = caller.ask("GET", page["nextLink"])
    assert [artifact["path"] for artifact in rest["value"]] == [f"{number:02}" for number in range(PAGE, 2 * PAGE)]


@pytest.mark.parametrize(("hard", "left"), [("true", 404), ("false", 200)])
def test_delete_forgets_the_path_and_the_blob_where_asked(caller: Caller, hard: str, left: int) -> None:
    assert put_blob(caller.write_url("a b/ä"), b"bytes") == 201
    _, content = caller.ask("GET", f"{caller.of_run}/contentinfo", path="a b/ä")
    assert caller.ask("DELETE", f"{caller.of_store}/metadata", path="a b/ä", hardDelete=hard) == (200, None)
    assert caller.ask("GET", f"{caller.of_run}/contentinfo", path="a b/ä")[0] == 404
    assert get_blob(content["contentUri"])[0] == left


def test_a_blob_that_is_there_can_be_registered(caller: Caller) -> None:
    artifact = {"origin": "ExperimentRun", "container": f"dcid.{caller.run_id}", "path": "a"}
    register = caller.of_store.partition("/ExperimentRun")[0] + "/register"
    status, answer = caller.ask("POST", register, artifact)
    assert (status, answer["path"]) == (200, "a")
    status, answer = caller.ask("POST", register, artifact)
    assert (status, answer["error"]["innerError"]["code"]) == (409, "ConflictError")


def test_an_experiment_can_be_named_by_its_id(caller: Caller) -> None:
    caller.register("a")
    experiment = caller.service.environment(caller.run_id)["AZUREML_EXPERIMENT_ID"]
    path = caller.of_run.replace("/experiments/experiment/", f"/experimentids/{experiment}/")
    status, page = caller.ask("GET", path)
    assert (status, [artifact["path"] for artifact in page["value"]]) == (200, ["a"])


def test_what_is_not_there(caller: Caller) -> None:
    missing = [
        caller.of_run.replace(caller.run_id, "another-run"),
        caller.of_run.replace("/experiments/experiment/", "/experiments/another/"),
        caller.of_run.replace("/workspaces/ws/", "/workspaces/another/"),
        caller.of_store.replace(caller.run_id, "another-run") + "/metadata?path=a",
        f"{caller.of_run}/contentinfo?path=nothing",
        f"{caller.of_store}/write?path=nothing",
        "/history/v1.0/another/call",
    ]
    for path in missing:
        status, answer = caller.ask("GET", path)
        assert status == 404, path
        assert answer["error"]["code"] == "UserError"
        assert answer["error"]["innerError"]["code"] == "NotFoundError"
        assert answer["correlation"]["request"]


@pytest.mark.parametrize("body", [{}, {"paths": "a"}, {"paths": ["a"]}, {"paths": [{"path": ""}]}, ["a"]])
def test_a_request_that_makes_no_sense_is_refused(caller: Caller, body: object) -> None:
    assert caller.ask("POST", f"{caller.of_run}/batch/metadata", body)[0] == 400


def test_a_call_without_its_path_is_refused(caller: Caller) -> None:
    assert caller.ask("GET", f"{caller.of_run}/contentinfo")[0] == 400


def test_a_path_goes_to_one_of_many_who_register_it(caller: Caller) -> None:
    answers: list[dict[str, object]] = []
    threads = [threading.Thread(target=lambda: answers.append(caller.register("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(bool(answer["artifacts"]) for answer in answers) == 1
    assert sum(bool(answer["errors"]) for answer in answers) == 7


def test_a_batch_can_be_limited(tmp_path: Path, azureml_service: FakeAzureML) -> None:
    with azureml_server(tmp_path, azurite=azureml_service.azurite, batch_limit=2, plain=True) as service:
        caller = Caller(service, service.new_run())
        assert len(caller.register("a", "b")["artifacts"]) == 2
        body = {"paths": [{"path": name} for name in "cde"]}
        assert caller.ask("POST", f"{caller.of_run}/batch/metadata", body)[0] == 400
