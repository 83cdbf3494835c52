from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from stagesink.errors import ConfigError, UnknownScheme
from stagesink.sinks import ArtifactSink, open_sink, registry
from stagesink.sinks.fsspec import FsspecSink
from stagesink.sinks.local import LocalSink
from stagesink.sinks.memory import MemorySink


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("s3://bucket/a", "s3"),
        ("S3://bucket", "s3"),
        ("memory:", "memory"),
        ("file:./a", "file"),
        ("./a", "file"),
        ("/a/b:c", "file"),
        ("C:\\artifacts", "file"),
        ("C:/artifacts", "file"),
        ("", "file"),
        ("git+ssh://x", "git+ssh"),
    ],
)
def test_the_scheme_of_a_uri(uri: str, scheme: str) -> None:
    assert registry.scheme_of(uri) == scheme


def test_memory_and_file_are_built_in(tmp_path: Path) -> None:
    assert isinstance(open_sink("memory:x"), MemorySink)
    assert isinstance(open_sink(f"file:{tmp_path}"), LocalSink)
    assert isinstance(open_sink(str(tmp_path)), LocalSink)


def test_what_fsspec_knows_goes_to_fsspec(tmp_path: Path) -> None:
    assert isinstance(open_sink(f"local://{tmp_path}"), FsspecSink)


def test_every_built_in_sink_is_a_sink(tmp_path: Path) -> None:
    for uri in ("memory:", f"file:{tmp_path}", f"local://{tmp_path}"):
        assert isinstance(open_sink(uri), ArtifactSink)


def test_an_unknown_scheme_names_the_nearest() -> None:
    with pytest.raises(UnknownScheme, match=r"'memry'.*Did you mean 'memory'"):
        open_sink("memry:x")


@pytest.mark.parametrize("name", ["mlflow", "mlflow+databricks", "azureml", "memory", "file"])
def test_the_name_of_a_sink_is_taken_for_no_folder(name: str) -> None:
    with pytest.raises(ConfigError, match=r"Write '.*:' for the sink, '\./.*' for a folder"):
        open_sink(name)
    assert open_sink(f"./{name}").uri.endswith(f"/{name}")


@pytest.mark.parametrize("uri", ["http://me:secret@host:5000", "sqlite:///runs.db", "databricks://profile"])
def test_a_tracking_uri_is_told_how_it_becomes_a_sink(uri: str) -> None:
    with pytest.raises(UnknownScheme, match=r"write mlflow\+") as caught:
        open_sink(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["s3+fsspec://bucket/runs", "gs+x://bucket", "local+x://folder"])
def test_a_plus_means_nothing_to_what_fsspec_knows(uri: str) -> None:
    with pytest.raises(UnknownScheme, match="No sink serves the scheme"):
        open_sink(uri)


def test_an_unknown_scheme_with_nothing_near_it_says_what_there_is() -> None:
    with pytest.raises(UnknownScheme, match="s3://"):
        open_sink("qqqqqqqq://x")


def open_plugin(uri: str, storage_options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return uri, dict(storage_options)


@pytest.fixture
def _plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: EntryPoint) -> Any:
        return open_plugin

    entry = EntryPoint("s3", "plugin:open_plugin", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(EntryPoint, "load", load)
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([entry]))


@pytest.mark.usefixtures("_plugin")
def test_a_plugin_serves_its_scheme_before_fsspec_does() -> None:
    assert open_sink("s3://bucket/x", storage_options={"a": 1}) == ("s3://bucket/x", {"a": 1})


@pytest.mark.usefixtures("_plugin")
def test_a_plugin_is_named_when_a_scheme_is_misspelt() -> None:
    with pytest.raises(UnknownScheme, match="Did you mean"):
        open_sink("s33://bucket")
