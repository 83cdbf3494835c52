"""The services of docker/compose.yaml on this machine, by the commands that stand there: the demo into each store."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from compose import HOST, services
from mlflow_servers import launcher, mlflow_version
from servers import azurite_command, free_port, installed, process

pytestmark = [
    pytest.mark.timeout(300),  # three demos, of several processes each
    pytest.mark.skipif(mlflow_version() < (3, 0), reason="the images have MLflow 3"),
]

PROGRAMS = Path(sys.executable).parent


def run(name: str, ports: dict[str, int], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a service that ends."""
    service = services()[name]
    program, *arguments = service.command_here()
    ours = ("COV", "MLFLOW_", "STAGESINK_", "AWS_", "AZURE")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return subprocess.run(
        [str(PROGRAMS / program), *arguments],
        cwd=folder,
        env=environment | service.environment_here(ports),
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def ports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The servers' ports; the containers and the bucket are there, as in compose each waits for the one before."""
    installed("sklearn", "optuna", "skl2onnx", "onnxruntime", "azure", "adlfs", "s3fs", "moto", "flask", "boto3")
    folder = tmp_path_factory.mktemp("compose")
    found = {name: free_port() for name in ("azurite", "moto")}
    (folder / "blobs").mkdir()
    commands = {name: services()[name].command_here(found[name], folder / "blobs") for name in found}
    azurite = [azurite_command(), *commands["azurite"][1:]]
    moto = [str(PROGRAMS / commands["moto"][0]), *commands["moto"][1:]]
    with (
        process(azurite, found["azurite"], folder / "azurite.log"),
        process(moto, found["moto"], folder / "moto.log"),
    ):
        made = run("stores", found, folder)
        assert made.returncode == 0, made.stderr
        found["mlflow"] = start_mlflow(request, found)
        yield found


def start_mlflow(request: pytest.FixtureRequest, ports: dict[str, int]) -> int:
    service = services()["mlflow"]
    program, command, *options = service.command_here()
    assert (program, command) == ("mlflow", "server")
    for name in ("--host", "--port", "--backend-store-uri"):  # the launcher has its own
        at = options.index(name)
        del options[at : at + 2]
    port, _ = launcher(request).ask("compose", *options, **service.environment_here(ports))
    return port


@pytest.fixture
def blobs(ports: dict[str, int]) -> Any:
    """Azurite, seen by Microsoft's client."""
    from azure.storage.blob import BlobServiceClient

    settings = services()["stores"].environment_here(ports)["AZURE_STORAGE_CONNECTION_STRING"]
    with BlobServiceClient.from_connection_string(settings) as client:
        yield client


def objects_in_s3(ports: dict[str, int]) -> set[str]:
    import boto3

    client = boto3.client(
        "s3", endpoint_url=f"http://{HOST}:{ports['moto']}", aws_access_key_id="x", aws_secret_access_key="x"
    )
    return {entry["Key"] for entry in client.list_objects_v2(Bucket="stagesink")["Contents"]}


def landed(paths: set[str]) -> set[str]:
    """What the demo leaves, without the folders above, which have the ids of runs."""
    wanted = {"metrics.json", "checkpoint.manifest.json", "model.onnx", "benchmark_results.json"}
    return {path.rpartition("/")[2] for path in paths} & wanted


@pytest.mark.parametrize(
    "name",
    [
        "trainer",
        pytest.param("trainer-az", marks=pytest.mark.long),
        pytest.param("trainer-s3", marks=pytest.mark.long),
    ],
)
def test_the_demo_lands_in_each_store(name: str, ports: dict[str, int], blobs: Any, tmp_path: Path) -> None:
    ended = run(name, ports, tmp_path)
    assert ended.returncode == 0, ended.stderr
    if name == "trainer-s3":
        there = objects_in_s3(ports)
    else:
        container = {"trainer": "mlflow", "trainer-az": "stagesink"}[name]
        there = {blob.name for blob in blobs.get_container_client(container).list_blobs()}
    assert landed(there) == {"metrics.json", "checkpoint.manifest.json", "model.onnx", "benchmark_results.json"}


def answer_to(host: str, url: str) -> urllib.error.HTTPError | http.client.HTTPResponse:
    """Ask a server by another name than its address."""
    try:
        answer: http.client.HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(url, headers={"Host": host}), timeout=60
        )
    except urllib.error.HTTPError as refused:
        return refused
    return answer


@pytest.mark.parametrize(("host", "status"), [("mlflow:5000", 200), ("elsewhere.example:5000", 403)])
def test_mlflow_answers_to_its_services_name(host: str, status: int, ports: dict[str, int]) -> None:
    url = f"http://{HOST}:{ports['mlflow']}/api/2.0/mlflow/experiments/get?experiment_id=0"
    with answer_to(host, url) as answer:
        assert answer.status == status


def test_azurite_answers_to_its_services_name(ports: dict[str, int]) -> None:
    url = f"http://{HOST}:{ports['azurite']}/devstoreaccount1/stagesink/none"
    with answer_to("azurite:10000", url) as answer:
        assert answer.headers["Server"].startswith("Azurite-Blob")
        assert answer.status == 403  # the account is known, and wants a signature
