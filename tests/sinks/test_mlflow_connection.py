"""What of mlflow's environment reaches a request. How it is used is tested on real servers."""

from __future__ import annotations

import base64
import socket
import ssl
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("urllib3", reason="comes with the extra mlflow")

import urllib3

from stagesink.errors import ConfigError, SinkAuthError
from stagesink.sinks._http import pools
from stagesink.sinks.mlflow import connection, netrc_file
from stagesink.sinks.mlflow.address import Address

HOST = Address("http://host:5000")
TLS_HOST = Address("https://host:5000")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Keep the machine's own credentials file and proxies out."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC")
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path


def basic(login: str) -> str:
    return "Basic " + base64.b64encode(login.encode()).decode()


@pytest.mark.parametrize(
    ("address", "environ", "sent"),
    [
        (HOST, {}, None),
        (HOST, {"MLFLOW_TRACKING_TOKEN": "t0ken"}, "Bearer t0ken"),
        (HOST, {"MLFLOW_TRACKING_TOKEN": " t0ken\r\n"}, "Bearer t0ken"),
        (HOST, {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "pä55"}, basic("me:pä55")),
        (
            HOST,
            {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "x", "MLFLOW_TRACKING_TOKEN": "t"},
            basic("me:x"),
        ),
        (HOST, {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_TOKEN": "t"}, "Bearer t"),
        (Address("http://a%40b:p%2Fw@host"), {"MLFLOW_TRACKING_TOKEN": "t"}, basic("a@b:p/w")),
    ],
)
def test_credentials_go_in_mlflows_own_order(address, environ, sent):
    assert connection.headers(address, environ).get("Authorization") == sent


@pytest.mark.parametrize("token", ["s3cr3t\nX-Other: 1", "s3cr3t \u2026", "s3cr3t and more"])
def test_what_is_no_token_is_refused_and_not_shown(token):
    with pytest.raises(SinkAuthError, match="What MLFLOW_TRACKING_TOKEN holds is no token") as caught:
        connection.headers(HOST, {"MLFLOW_TRACKING_TOKEN": token})
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))
    assert token in connection.secrets(HOST, {"MLFLOW_TRACKING_TOKEN": token})


def test_the_credentials_file_is_read(home):
    (home / ".mlflow").mkdir()
    text = "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = p%55\n"
    (home / ".mlflow" / "credentials").write_text(text)
    assert connection.headers(HOST, {})["Authorization"] == basic("me:p%55")
    assert connection.headers(HOST, {"MLFLOW_TRACKING_PASSWORD": "x"})["Authorization"] == basic("me:x")


def test_a_credentials_file_that_is_none_is_named_and_not_quoted(home):
    (home / ".mlflow").mkdir()
    (home / ".mlflow" / "credentials").write_text("password = pa55\n")
    assert connection.secrets(HOST, {}) == frozenset()  # asked when something else has failed
    with pytest.raises(ConfigError, match="credentials cannot be read") as caught:
        connection.headers(HOST, {})
    assert "pa55" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_password_of_the_credentials_file_is_known_as_a_secret(home):
    (home / ".mlflow").mkdir()
    (home / ".mlflow" / "credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = pa55\n"
    )
    assert connection.secrets(HOST, {}) == {"pa55", basic("me:pa55").removeprefix("Basic ")}


NETRC = "machine host login me password pa55\n"


@pytest.mark.parametrize("name", [".netrc", "_netrc"])
def test_the_login_of_netrc_is_sent_where_there_is_no_other(home, name):
    (home / name).write_text(NETRC)
    assert connection.headers(HOST, {})["Authorization"] == basic("me:pa55")
    assert "Authorization" not in connection.headers(Address("http://other:5000"), {})
    assert connection.headers(HOST, {"MLFLOW_TRACKING_TOKEN": "t0ken"})["Authorization"] == "Bearer t0ken"
    other = {"MLFLOW_TRACKING_USERNAME": "you", "MLFLOW_TRACKING_PASSWORD": "x"}
    assert connection.headers(HOST, other)["Authorization"] == basic("you:x")
    assert connection.headers(Address("http://a:b@host"), {})["Authorization"] == basic("a:b")


@pytest.mark.parametrize(
    "text",
    [
        NETRC,
        "machine other login a password b\ndefault login me password pa55\n",
        "machine other login a password b\n",
        "machine host account me password pa55\n",
        "machine HOST login me password pa55\n",
        "# a note\nmachine host\n  login me\n  password 'p 5'\n",
        "machine host login me password",
        "password pa55 and what else\n",
        "",
    ],
)
def test_netrc_means_what_it_means_to_requests(home, monkeypatch, text):
    utils = pytest.importorskip("requests.utils", reason="comes with mlflow")
    path = home / "elsewhere"
    path.write_text(text)
    path.chmod(0o644)
    monkeypatch.setenv("NETRC", str(path))
    login = utils.get_netrc_auth(HOST.server)
    sent = connection.headers(HOST, {"NETRC": str(path)}).get("Authorization")
    assert sent == (None if login is None else basic(":".join(login)))


def test_a_netrc_that_is_none_is_passed_over(home, monkeypatch):
    (home / ".netrc").write_bytes(b"machine host login me password \xff\x00 pa55")
    assert "Authorization" not in connection.headers(HOST, {})
    assert "Authorization" not in connection.headers(HOST, {"NETRC": str(home / "nothing")})
    assert "Authorization" not in connection.headers(HOST, {"NETRC": str(home)})


def test_netrc_is_read_once_for_a_server_and_again_when_it_changes(home, monkeypatch):
    (home / ".netrc").write_text(NETRC)
    read, whole = [], netrc_file.netrc.netrc
    monkeypatch.setattr(netrc_file.netrc, "netrc", lambda path: read.append(path) or whole(path))
    for _ in range(3):
        connection.headers(HOST, {})
    connection.headers(HOST, {"MLFLOW_TRACKING_TOKEN": "t0ken"})
    assert read == [str(home / ".netrc")]
    (home / ".netrc").write_text(NETRC.replace("pa55", "renewed"))
    assert connection.headers(HOST, {})["Authorization"] == basic("me:renewed")


def test_the_password_of_netrc_is_known_as_a_secret(home):
    (home / ".netrc").write_text(NETRC)
    assert connection.secrets(HOST, {}) == {"pa55", basic("me:pa55").removeprefix("Basic ")}
    assert connection.secrets(Address("sqlite:///mlflow.db"), {}) == frozenset()


def test_the_workspace_goes_along():
    assert connection.headers(HOST, {"MLFLOW_WORKSPACE": " team "})["X-MLFLOW-WORKSPACE"] == "team"


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Install header plug-ins: by name, where in the module the provider is."""
    (tmp_path / "header_plugin.py").write_text(
        """class Provider:
    def in_context(self): return True
    def request_headers(self): return {'X-From': 'plugin'}
class Login(Provider):
    def request_headers(self): return {'authorization': 'Custom 1'}
class Failing(Provider):
    def request_headers(self): raise ValueError("with t0ken")
class Unable(Provider):
    def __init__(self): raise OSError(13, "no")
class Lost(Provider):
    def in_context(self): raise KeyError("lost")
class Numbered(Provider):
    def request_headers(self): return 7
"""
    )

    def plugins(**names: str) -> None:
        info = tmp_path / "plugin-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
        lines = [f"{name} = {module}" for name, module in names.items()]
        (info / "entry_points.txt").write_text("\n".join(["[mlflow.request_header_provider]", *lines, ""]))
        connection._plugins.cache_clear()

    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(connection, "_warned", {})
    yield plugins
    connection._plugins.cache_clear()
    sys.modules.pop("header_plugin", None)


def test_header_plug_ins_are_asked_each_time(plugins):
    plugins(ours="header_plugin:Provider")
    assert connection.headers(HOST, {})["X-From"] == "plugin"


def test_a_plug_ins_own_login_goes_before_netrc(plugins, home):
    (home / ".netrc").write_text(NETRC)
    plugins(ours="header_plugin:Login")
    sent = connection.headers(HOST, {})
    assert {value for name, value in sent.items() if name.lower() == "authorization"} == {"Custom 1"}


def test_a_header_plug_in_that_fails_is_warned_of_once_and_left_out(plugins, caplog):
    plugins(
        absent="not_a_module:Provider",
        failing="header_plugin:Failing",
        unable="header_plugin:Unable",
        lost="header_plugin:Lost",
        numbered="header_plugin:Numbered",
        ours="header_plugin:Provider",
    )
    for _ in range(3):
        assert connection.headers(HOST, {})["X-From"] == "plugin"
    assert sorted(record.getMessage() for record in caplog.records) == [
        f"mlflow's header plug-in {name!r} failed: {kind}. Requests go without what it adds."
        for name, kind in [
            ("absent", "ModuleNotFoundError"),
            ("failing", "ValueError"),
            ("lost", "KeyError"),
            ("numbered", "TypeError"),
            ("unable", "Permission denied (PermissionError)"),
        ]
    ]


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf"])
def test_a_limit_that_is_no_number_is_said(value):
    with pytest.raises(ConfigError, match="MLFLOW_HTTP_REQUEST_TIMEOUT is"):
        connection.pool_manager(HOST, {"MLFLOW_HTTP_REQUEST_TIMEOUT": value})


def test_the_limit_is_mlflows():
    pool = connection.pool_manager(HOST, {"MLFLOW_HTTP_REQUEST_TIMEOUT": "7"})
    limit = pool.connection_pool_kw["timeout"]
    assert (limit.connect_timeout, limit.read_timeout) == (7, 7)
    assert connection.pool_manager(HOST, {}).connection_pool_kw["timeout"].read_timeout == 120


def test_tls_is_checked_unless_it_is_said_otherwise():
    def mode(environ: dict[str, str]) -> tuple[bool, ssl.VerifyMode]:
        context = connection.pool_manager(TLS_HOST, environ).connection_pool_kw["ssl_context"]
        return context.check_hostname, context.verify_mode

    assert mode({}) == (True, ssl.CERT_REQUIRED)
    assert mode({"MLFLOW_TRACKING_INSECURE_TLS": "false"}) == (True, ssl.CERT_REQUIRED)
    assert mode({"MLFLOW_TRACKING_INSECURE_TLS": "true"}) == (False, ssl.CERT_NONE)


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path, variable, content):
    path = tmp_path / "cert.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=f"{variable} has no certificate that can be read"):
        connection.pool_manager(TLS_HOST, {variable: str(path)})


def test_what_requests_trusts_may_be_a_folder_and_is_named_when_it_cannot_be_read(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    assert connection.pool_manager(TLS_HOST, {}).connection_pool_kw["ssl_context"].verify_mode == ssl.CERT_REQUIRED
    for name, content in (("gone.pem", None), ("text.pem", "no certificate")):
        if content is not None:
            (tmp_path / name).write_text(content)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / name))
        with pytest.raises(ConfigError, match="REQUESTS_CA_BUNDLE has no certificate that can be read"):
            connection.pool_manager(TLS_HOST, {})


def test_curls_variable_counts_where_requests_own_is_not_set(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    for name, value in (("CURL_CA_BUNDLE", "curl"), ("REQUESTS_CA_BUNDLE", "requests")):
        monkeypatch.setenv(name, str(tmp_path / value))
        for manager in (lambda: connection.pool_manager(TLS_HOST, {}), lambda: pools.pool_manager("https://host")):
            with pytest.raises(ConfigError, match=f"{name} has no certificate that can be read"):
                manager()


def test_what_is_trusted_is_read_again_when_a_variable_names_something_else(tmp_path: Path, monkeypatch):
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)

    def authorities() -> int:
        return len(pools.pool_manager("https://host").connection_pool_kw["ssl_context"].get_ca_certs())

    before = authorities()
    trustme = pytest.importorskip("trustme", reason="comes with the tests")
    trustme.CA().cert_pem.write_to_path(tmp_path / "own.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(tmp_path / "own.pem"))
    assert authorities() == 1 < before


def test_a_named_authority_stands_in_place_of_all_others(tmp_path: Path):
    trustme = pytest.importorskip("trustme", reason="comes with the tests")
    trustme.CA(organization_name="ours").cert_pem.write_to_path(tmp_path / "own.pem")
    environ = {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(tmp_path / "own.pem")}
    context = connection.pool_manager(TLS_HOST, environ).connection_pool_kw["ssl_context"]
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    (found,) = context.get_ca_certs()
    assert "ours" in str(found["subject"])


def test_an_authority_and_no_check_contradict_each_other():
    environ = {"MLFLOW_TRACKING_SERVER_CERT_PATH": "x", "MLFLOW_TRACKING_INSECURE_TLS": "1"}
    with pytest.raises(ConfigError, match="contradict each other"):
        connection.pool_manager(TLS_HOST, environ)


@pytest.mark.parametrize(
    ("environ", "address", "proxy"),
    [
        ({}, HOST, None),
        ({"http_proxy": "http://proxy:3128"}, HOST, "http://proxy:3128"),
        ({"http_proxy": "proxy:3128"}, HOST, "http://proxy:3128"),
        ({"https_proxy": "http://proxy:3128"}, HOST, None),
        ({"all_proxy": "http://proxy:3128"}, Address("https://host"), "http://proxy:3128"),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "host"}, HOST, None),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "other, host:5000"}, HOST, None),
        ({"http_proxy": "http://proxy:3128", "NO_PROXY": "corp:5000"}, Address("http://me:x@mlflow.corp:5000"), None),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "host:5001"}, HOST, "http://proxy:3128"),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "x, 10.0.0.0/8"}, Address("http://10.2.3.4:5000"), None),
        ({"http_proxy": "http://proxy:3128", "NO_PROXY": "10.2.3.4"}, Address("http://10.2.3.4:5000"), None),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "10.2.0.1/16"}, Address("http://10.2.3.4"), None),
        (
            {"http_proxy": "http://proxy:3128", "no_proxy": "10.0.0.0/8"},
            Address("http://11.0.0.1"),
            "http://proxy:3128",
        ),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "10.0.0.0/8"}, HOST, "http://proxy:3128"),
    ],
)
def test_proxies_come_from_the_environment(monkeypatch, environ, address, proxy):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    pool = connection.pool_manager(address, {})
    found = pool.proxy.url if isinstance(pool, urllib3.ProxyManager) and pool.proxy is not None else None
    assert found == proxy


def test_a_proxys_login_is_sent_as_a_header(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:p%40w@proxy:3128")
    pool = connection.pool_manager(HOST, {})
    assert isinstance(pool, urllib3.ProxyManager)
    assert pool.proxy_headers["proxy-authorization"] == basic("me:p@w")


def test_what_is_secret_is_known():
    environ = {"MLFLOW_TRACKING_TOKEN": "t0ken"}
    assert connection.secrets(TLS_HOST, environ) >= {"t0ken"}
    assert connection.secrets(TLS_HOST, {"MLFLOW_TRACKING_TOKEN": "t0ken\n"}) >= {"t0ken\n", "t0ken"}
    both = connection.secrets(Address("http://me:p%2F55@host"), {})
    assert both >= {"p%2F55", "p/55", basic("me:p/55").removeprefix("Basic ")}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [({}, False), ({"MLFLOW_TRACKING_AUTH": "kubernetes"}, True), ({"MLFLOW_TRACKING_AWS_SIGV4": "true"}, True)],
)
def test_requests_that_a_plug_in_signs_need_mlflows_own_client(environ, expected):
    assert connection.needs_own_client(environ) is expected


class TwoPackets(BaseHTTPRequestHandler):
    """Answers as MLflow's servers do, first the head and then the body, once it has looked how the client waits."""

    protocol_version = "HTTP/1.1"
    client: ClassVar[socket.socket | None] = None
    prompt: ClassVar[list[bool]]

    def do_GET(self) -> None:
        end = time.monotonic() + 2
        while self.client is not None and not self._acknowledges_at_once() and time.monotonic() < end:
            time.sleep(0.001)  # it has sent its question, and may not wait for the answer yet
        self.prompt.append(self.client is None or self._acknowledges_at_once())
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def _acknowledges_at_once(self) -> bool:
        assert self.client is not None
        return self.client.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="an option of Linux")
def test_the_start_of_an_answer_is_acknowledged_at_once():
    class Handler(TwoPackets):
        prompt: ClassVar[list[bool]] = []

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        pools = connection.pool_manager(Address(url), {})
        for _ in range(10):
            assert pools.request("GET", url).data == b"{}"
            pool = pools.connection_from_url(url)
            kept = pool._get_conn()
            Handler.client = kept.sock
            pool._put_conn(kept)
        assert pool.num_connections == 1
        pools.clear()
        server.shutdown()
    assert all(Handler.prompt)
