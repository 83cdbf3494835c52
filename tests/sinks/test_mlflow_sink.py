"""Which way a run's artifacts go, what is imported for it, and what is shown of it."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow_servers import MlflowServer, s3_environment
from servers import S3Server, closed_port, google_key

pytest.importorskip("urllib3", reason="comes with the extra mlflow")

from stagesink import ArtifactUploader, open_sink, restore
from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import ConfigError, DeleteNotSupported, RunNotFound, SinkConflict, TransientSinkError
from stagesink.sinks.mlflow import MlflowSink, direct
from stagesink.sinks.mlflow.address import Address
from stagesink.sinks.mlflow.client import ClientRoot
from stagesink.sinks.mlflow.proxied import ProxiedRoot, split_root
from stagesink.transfer import Transfer, list_committed, plan_file, plan_tree

HOST = Address("http://host:5000/prefix")


@pytest.mark.parametrize(
    ("root", "server", "folder"),
    [
        ("mlflow-artifacts:/1/r/artifacts", "http://host:5000/prefix", "1/r/artifacts"),
        ("mlflow-artifacts:///1/r/artifacts", "http://host:5000/prefix", "1/r/artifacts"),
        ("mlflow-artifacts://other:81/1/r/artifacts", "http://other:81/prefix", "1/r/artifacts"),
        ("mlflow-artifacts:/api/2.0/mlflow-artifacts/artifacts/1/r", "http://host:5000/prefix", "1/r"),
        ("http://other/x/api/2.0/mlflow-artifacts/artifacts/1/r/", "http://other/x", "1/r"),
    ],
)
def test_an_artifact_root_names_server_and_folder(root, server, folder):
    assert split_root(root, HOST) == (server, folder)


@pytest.mark.parametrize(
    ("root", "environ", "uri", "options"),
    [
        ("/a/b", {}, "file:/a/b", {}),
        ("file:///a/b%20c", {}, "file:/a/b c", {}),
        ("/a/b%20c", {}, "file:/a/b%20c", {}),
        ("s3://bucket/a", {}, "s3://bucket/a", {}),
        (
            "s3://bucket/a",
            {"MLFLOW_S3_ENDPOINT_URL": "http://s3", "MLFLOW_S3_IGNORE_TLS": "true"},
            "s3://bucket/a",
            {"endpoint_url": "http://s3", "client_kwargs": {"verify": False}},
        ),
        (
            "s3://bucket/a",
            {"MLFLOW_S3_UPLOAD_EXTRA_ARGS": '{"ServerSideEncryption": "AES256"}'},
            "s3://bucket/a",
            {"s3_additional_kwargs": {"ServerSideEncryption": "AES256"}},
        ),
        ("gs://bucket/a", {}, "gs://bucket/a", {}),
        (
            "wasbs://box@account.blob.core.windows.net/a/b",
            {"AZURE_STORAGE_ACCESS_KEY": "k"},
            "az://box/a/b",
            {"account_name": "account", "account_key": "k"},
        ),
        (
            "abfss://box@account.dfs.core.windows.net/a",
            {"AZURE_STORAGE_CONNECTION_STRING": "c"},
            "az://box/a",
            {"account_name": "account", "connection_string": "c"},
        ),
        ("wasbs://box@account.blob.core.windows.net/a", {}, "az://box/a", {"account_name": "account", "anon": False}),
        (
            "abfss://box@account.dfs.core.chinacloudapi.cn/a",
            {},
            "az://box/a",
            {"account_name": "account", "account_host": "account.blob.core.chinacloudapi.cn", "anon": False},
        ),
    ],
)
def test_a_store_is_reached_with_mlflows_own_variables(monkeypatch, root, environ, uri, options):
    for name in ("AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert direct.opens(root)
    assert direct._location(root) == (uri, options)


@pytest.mark.parametrize("root", ["dbfs:/a", "hdfs://h/a", "ftp://h/a", "plugin://x"])
def test_what_mlflow_alone_knows_goes_its_way(root):
    assert not direct.opens(root)


@pytest.mark.parametrize("value", ["ServerSideEncryption=AES256", "[1]"])
def test_extra_arguments_that_are_no_object_are_said(monkeypatch, value):
    monkeypatch.setenv("MLFLOW_S3_UPLOAD_EXTRA_ARGS", value)
    with pytest.raises(ConfigError, match="MLFLOW_S3_UPLOAD_EXTRA_ARGS is no JSON object"):
        direct._location("s3://bucket/a")


def test_a_password_is_shown_nowhere_and_survives_pickling():
    sink = open_sink("mlflow+http://me:pa55@host:5000")
    assert isinstance(sink, MlflowSink)
    assert "pa55" not in sink.uri + repr(sink)
    assert pickle.loads(pickle.dumps(sink)).tracking_uri == sink.tracking_uri == "http://me:pa55@host:5000"


def test_a_pickled_sink_means_the_same_server_elsewhere(monkeypatch):
    for tracking_uri in ("http://here:1", "databricks", "sqlite:///x.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
        data = pickle.dumps(open_sink("mlflow:"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:1")
        assert pickle.loads(data).tracking_uri == tracking_uri


def test_mlflow_is_not_imported_for_a_server_that_speaks_http(mlflow_server: MlflowServer) -> None:
    program = (
        "import sys\n"
        "from stagesink import ArtifactUploader\n"
        "with ArtifactUploader(sys.argv[2], sink=sys.argv[1], on_failure='raise') as uploader:\n"
        "    assert uploader.upload_file(sys.argv[3], 'metrics.json')\n"
        "assert 'mlflow' not in sys.modules\n"
    )
    run_id = mlflow_server.run()
    subprocess.run([sys.executable, "-c", program, mlflow_server.sink_uri, run_id, __file__], check=True)
    assert set(mlflow_server.listed(run_id)) == {"metrics.json", "metrics.json.manifest.json"}


def test_a_root_that_is_a_folder_of_the_servers_own_machine_is_noticed(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A relative root: the server reads it from its folder, we from ours, as if it were another machine.
    run_id = mlflow_server.run(mlflow_server.experiment("file:relative-root"))
    root = mlflow_server.info(run_id)["artifact_uri"]
    if root.startswith("file:///") or root.startswith("/"):
        monkeypatch.setattr(direct, "_location", lambda root: (f"file:{tmp_path}/elsewhere/artifacts", {}))
    monkeypatch.chdir(tmp_path)
    sink = MlflowSink(mlflow_server.sink_uri)
    with pytest.raises(SinkConflict, match="artifact root is a folder of its own machine") as caught:
        sink.put(ArtifactKey(run_id, "a/b.bin"), MemorySource(b"x"))
    assert "--artifacts-destination" in str(caught.value)


def test_a_direct_folder_is_synced_once_for_many_small_objects(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    run_id = mlflow_server.run(mlflow_server.experiment((tmp_path / "root").as_uri()))
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(100):
        (tree / f"{number}.bin").write_bytes(b"x")
    sink = MlflowSink(mlflow_server.sink_uri)
    with sink.batch() as batch:
        batch.put(ArtifactKey(run_id, "first"), MemorySource(b"1"))
        assert type(batch._root(run_id)._sink).__name__ == "_BatchedLocalSink"  # type: ignore[attr-defined]
    assert len(Transfer(sink).run(plan_tree(run_id, "checkpoint", tree))) == 100
    assert len(mlflow_server.listed(run_id)) == 102


@pytest.mark.filterwarnings("ignore::Warning")  # mlflow's own store uses what its libraries have deprecated
def test_a_sqlite_store_needs_no_server(mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sqlalchemy", reason="comes with the whole mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("x", artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    sink = open_sink(f"mlflow+{uri}")
    with pytest.raises(RunNotFound, match="Check the run id, and that"):
        sink.stat(ArtifactKey("0" * 32, "x"))
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team")
    with pytest.raises(RunNotFound, match="Check the run id, MLFLOW_WORKSPACE, and that"):
        sink.stat(ArtifactKey("0" * 32, "x"))
    monkeypatch.delenv("MLFLOW_WORKSPACE")
    Transfer(sink).run(plan_file(run_id, "metrics.json", __file__))
    assert [manifest.path for manifest in list_committed(sink, run_id)] == ["metrics.json"]
    assert (tmp_path / "artifacts" / run_id / "artifacts" / "metrics.json").read_bytes() == Path(__file__).read_bytes()


@pytest.mark.once
def test_a_database_without_its_package_says_what_to_install(mlflow: Any, tmp_path: Path) -> None:
    program = """
        import sys
        sys.modules["sqlalchemy"] = None  # as with mlflow-skinny alone
        from stagesink.artifacts import ArtifactKey, MemorySource
        from stagesink.errors import SinkError
        from stagesink.sinks import open_sink
        try:
            open_sink(f"mlflow+sqlite:///{sys.argv[1]}").put(ArtifactKey("0" * 32, "a"), MemorySource(b"x"))
        except SinkError as error:
            print(error.hint)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "other.db")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
    assert "pip install mlflow" in said


def test_a_direct_store_gets_mlflows_extra_arguments(
    mlflow_server: MlflowServer, mlflow_moto: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_environment(mlflow_moto).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_S3_UPLOAD_EXTRA_ARGS", '{"StorageClass": "STANDARD_IA"}')
    run_id = mlflow_server.run(mlflow_server.experiment("s3://mlflow/extra"))
    stored = MlflowSink(mlflow_server.sink_uri).put(ArtifactKey(run_id, "a.bin"), MemorySource(b"x"))
    head = mlflow_moto.boto3().head_object(Bucket="mlflow", Key=f"extra/{run_id}/artifacts/a.bin")
    assert (head["StorageClass"], stored.uri) == ("STANDARD_IA", f"s3://mlflow/extra/{run_id}/artifacts/a.bin")


def test_a_google_root_is_reached_directly(mlflow_server: MlflowServer, mlflow_moto: S3Server, tmp_path: Path) -> None:
    """Google's XML interface, whose form is S3's, so that moto answers: as in the conformance tests of ``gs:``."""
    pytest.importorskip("obstore", reason="comes with the extra az, from Python 3.11 on")
    options = {"token": str(google_key(tmp_path)), "endpoint_url": mlflow_moto.endpoint}
    run_id = mlflow_server.run(mlflow_server.experiment("gs://mlflow/google"))
    sink = MlflowSink(mlflow_server.sink_uri, options)
    wrote = {"metrics.json": b"{}", "a b/größe.bin": bytes(range(256)) * 70_000}
    for path, data in wrote.items():
        (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / path).write_bytes(data)
    with ArtifactUploader(run_id, sink=mlflow_server.sink_uri, storage_options=options) as uploader:
        assert uploader.add_files(tmp_path / "out", "tree") is True, uploader.errors
    moto, prefix = mlflow_moto.boto3(), f"google/{run_id}/artifacts/tree/"
    for path, data in wrote.items():
        assert moto.get_object(Bucket="mlflow", Key=prefix + path)["Body"].read() == data
    assert sink.stat(ArtifactKey(run_id, "tree/metrics.json")).uri == f"gs://mlflow/{prefix}metrics.json"
    restore(sink, list(list_committed(sink, run_id)), tmp_path / "back")
    assert {path: (tmp_path / "back" / "tree" / path).read_bytes() for path in wrote} == wrote


def test_what_mlflows_own_client_wrote_is_read(mlflow: Any, mlflow_server: MlflowServer, tmp_path: Path) -> None:
    wrote = {
        "metrics.json": b"{}",
        "a b/metrics.json": b"{}",
        "tree/größe.bin": bytes(range(256)) * 5000,
        "tree/sub/+ 1/empty": b"",
    }
    for path, data in wrote.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    run_id = mlflow_server.run()
    with mlflow_server.client() as client:
        client.log_artifact(run_id, str(tmp_path / "metrics.json"))
        client.log_artifact(run_id, str(tmp_path / "metrics.json"), "a b")
        client.log_artifacts(run_id, str(tmp_path / "tree"), "tree")
    sink = MlflowSink(mlflow_server.sink_uri)
    assert isinstance(sink._root(run_id), ProxiedRoot)
    assert {each.key.path: each.size for each in sink.list(run_id)} == {path: len(data) for path, data in wrote.items()}
    assert {each.key.path for each in sink.list(run_id, "tree")} == {path for path in wrote if path.startswith("tree/")}
    for path, data in wrote.items():
        key = ArtifactKey(run_id, path)
        assert (stored := sink.stat(key)) is not None
        assert stored.size == len(data)
        with sink.open(key) as stream:
            assert stream.read() == data
    sink.close()


def test_a_root_that_a_plug_in_of_mlflows_knows_goes_by_its_client(
    mlflow: Any, mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.artifact import artifact_repository_registry
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    class Plugged(LocalArtifactRepository):  # type: ignore[misc,unused-ignore]
        """A folder, by a scheme that is nobody's."""

        def __init__(self, artifact_uri: str, *others: Any, **named: Any) -> None:
            super().__init__(artifact_uri.replace("plugged:", "file:"), *others, **named)

    registry = artifact_repository_registry._artifact_repository_registry
    monkeypatch.setattr(registry, "_registry", {**registry._registry, "plugged": Plugged})
    run_id = mlflow_server.run(mlflow_server.experiment(f"plugged://{tmp_path}/kept"))
    sink, key = MlflowSink(mlflow_server.sink_uri), ArtifactKey(run_id, "a/b.bin")
    assert isinstance(sink._root(run_id), ClientRoot)
    stored = sink.put(key, MemorySource(b"through the plug-in"))
    assert (tmp_path / "kept" / run_id / "artifacts/a/b.bin").read_bytes() == b"through the plug-in"
    assert [sink.stat(key), *sink.list(run_id)] == [stored, stored]
    with sink.open(key) as stream:
        assert stream.read() == b"through the plug-in"
    assert not sink.removes(run_id)


def test_a_run_is_looked_up_once(mlflow_server: MlflowServer) -> None:
    from faults.proxy import FaultProxy

    run_id = mlflow_server.run()
    with FaultProxy(mlflow_server.port) as proxy:
        sink = MlflowSink(f"mlflow+http://127.0.0.1:{proxy.port}")
        for name in ("a", "b"):
            sink.put(ArtifactKey(run_id, name), MemorySource(b"x"))
        assert sum("runs/get" in path for _, path in proxy.requests) == 1


def test_a_run_is_looked_up_once_by_threads_that_start_together(mlflow_server: MlflowServer) -> None:
    from faults.proxy import FaultProxy

    runs = [mlflow_server.run() for _ in range(2)]
    with FaultProxy(mlflow_server.port) as proxy, ThreadPoolExecutor(8) as pool:
        sink = MlflowSink(f"mlflow+http://127.0.0.1:{proxy.port}")
        together = threading.Barrier(8)

        def ask(number: int) -> object:
            together.wait(30)
            return sink.stat(ArtifactKey(runs[number % 2], "a"))

        assert list(pool.map(ask, range(8))) == [None] * 8
        assert sum("runs/get" in path for _, path in proxy.requests) == len(runs)
        assert not sink._looking


def test_a_look_up_that_fails_fails_nobody_else(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = mlflow_server.run()
    sink = MlflowSink(mlflow_server.sink_uri)
    asked, first, find = threading.Event(), iter([True]), sink._find

    def failing_once(run_id: str) -> Any:
        if next(first, False):
            asked.set()
            while len(waiting) == 0 or not waiting[0].running():
                time.sleep(0.001)
            raise TransientSinkError("once")
        return find(run_id)

    monkeypatch.setattr(sink, "_find", failing_once)
    waiting: list[Future[object]] = []
    with ThreadPoolExecutor(2) as pool:
        failed = pool.submit(sink.stat, ArtifactKey(run_id, "a"))
        assert asked.wait(30)
        waiting.append(pool.submit(sink.stat, ArtifactKey(run_id, "a")))
        assert isinstance(failed.exception(30), TransientSinkError)
        assert waiting[0].result(30) is None


def test_a_run_is_found_though_the_servers_version_is_not(mlflow_server: MlflowServer) -> None:
    from faults.proxy import FaultProxy, Reset

    run_id = mlflow_server.run()
    with FaultProxy(mlflow_server.port) as proxy:
        proxy.plan(Reset(), path="/version")
        sink = MlflowSink(f"mlflow+http://127.0.0.1:{proxy.port}")
        sink.put(ArtifactKey(run_id, "a"), MemorySource(b"x"))
        assert sink.removes(run_id)  # as of any that does not tell


def test_a_writers_note_is_listed_and_removed_by_one_request_each(mlflow_server: MlflowServer) -> None:
    from faults.proxy import FaultProxy

    run_id = mlflow_server.run()
    with FaultProxy(mlflow_server.port) as proxy:
        sink = MlflowSink(f"mlflow+http://127.0.0.1:{proxy.port}")
        notes, key = sink.notes(), ArtifactKey(run_id, ".stagesink/turn.a.-.me.1.1")
        assert list(notes.list(run_id, ".stagesink")) == []
        notes.put(key, MemorySource(b"x"))
        asked = len(proxy.requests)
        assert [stored.key for stored in notes.list(run_id, ".stagesink")] == [key]
        assert len(proxy.requests) == asked + 1
        if sink.removes(run_id):
            notes.delete(key)
            assert len(proxy.requests) == asked + 2
            notes.delete(key)  # it is gone already
        else:
            with pytest.raises(DeleteNotSupported):
                notes.delete(key)
        assert (sink.stat(key) is None) == sink.removes(run_id)


def test_opening_asks_nothing() -> None:
    sink = open_sink(f"mlflow+http://127.0.0.1:{closed_port()}")
    sink.close()


def test_artifact_servers_on_another_host_share_what_speaks_to_them() -> None:
    sink = MlflowSink("mlflow+http://127.0.0.1:1")
    assert sink._client_for("http://127.0.0.1:2/prefix") is sink._http
    other = sink._client_for("http://localhost:2/a")
    assert other is not sink._http
    assert sink._client_for("http://localhost:2/b") is other
    assert sink._client_for("http://localhost:3") is not other
    sink.close()
