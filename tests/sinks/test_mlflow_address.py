"""Which server an MLflow sink's URI means, and how it is shown."""

from __future__ import annotations

import pytest

pytest.importorskip("urllib3", reason="comes with the extra mlflow")

from stagesink.errors import ConfigError
from stagesink.sinks.mlflow.address import address_of


@pytest.mark.parametrize(
    ("uri", "environ", "tracking_uri", "shown", "is_http"),
    [
        ("mlflow:", "http://h:5000", "http://h:5000", "mlflow+http://h:5000", True),
        ("mlflow://", "http://h:5000/", "http://h:5000/", "mlflow+http://h:5000", True),
        ("mlflow+https://h/a/b/", "", "https://h/a/b/", "mlflow+https://h/a/b", True),
        ("mlflow+http://h:1", "http://other:2", "http://h:1", "mlflow+http://h:1", True),
        ("mlflow+http://me:pa55@h:1/x", "", "http://me:pa55@h:1/x", "mlflow+http://***@h:1/x", True),
        ("mlflow+sqlite:////a/b.db", "", "sqlite:////a/b.db", "mlflow+sqlite:////a/b.db", False),
        ("mlflow:", "databricks", "databricks", "mlflow:", False),
        ("mlflow:", "./mlruns", "./mlruns", "mlflow:", False),
        ("mlflow+databricks:", "", "databricks", "mlflow:", False),
        ("mlflow+postgresql://u:pa55@h/db", "", "postgresql://u:pa55@h/db", "mlflow+postgresql://***@h/db", False),
    ],
)
def test_it_means_one_server(uri, environ, tracking_uri, shown, is_http):
    address = address_of(uri, {"MLFLOW_TRACKING_URI": environ})
    assert (address.tracking_uri, address.shown, address.is_http) == (tracking_uri, shown, is_http)
    assert "pa55" not in repr(address)


def test_the_server_is_without_its_login():
    address = address_of("mlflow+http://me%40x:p%2Fw@host:5000/prefix/", {})
    assert address.server == "http://host:5000/prefix"
    assert address.login == ("me%40x", "p%2Fw")
    assert address_of("mlflow+http://host", {}).login is None


@pytest.mark.parametrize(
    ("uri", "environ", "message"),
    [
        ("mlflow:", {}, "needs MLFLOW_TRACKING_URI, which is not set. Set it, or name the server: mlflow+http://"),
        ("mlflow:", {"MLFLOW_TRACKING_URI": " "}, "needs MLFLOW_TRACKING_URI"),
        (
            "mlflow://host:5000",
            {},
            "takes the server from MLFLOW_TRACKING_URI, not 'mlflow://host:5000'. Write mlflow+",
        ),
        ("mlflow+http:host", {}, "names no server"),
        ("mlflow+host:5000", {}, "names a server without its scheme. Write mlflow+http://host:5000"),
        ("mlflow+127.0.0.1:5000/x", {}, "names a server without its scheme. Write mlflow+http://127.0.0.1:5000/x"),
        ("mlflow+http:", {}, "names no server"),
        ("mlflow+HTTP://host", {}, "names no server"),
        ("mlflow+http://", {}, "is no address of a server"),
        ("mlflow+http://:5000", {}, "is no address of a server"),
        ("mlflow+http://host:port", {}, "is no address of a server"),
        ("mlflow+http://host:99999", {}, "is no address of a server"),
        ("mlflow+http://[::1", {}, "is no address of a server"),
        ("mlflow+http://host/?a=b", {}, "is no address of a server"),
        ("mlflow+http://me:pa55/w0rd@host:5000", {}, "is no address of a server"),
    ],
)
def test_what_names_no_server_is_refused_with_what_to_write(uri, environ, message):
    with pytest.raises(ConfigError) as caught:
        address_of(uri, environ)
    assert message in str(caught.value)
    assert "pa55" not in str(caught.value)
    assert caught.value.__cause__ is None
