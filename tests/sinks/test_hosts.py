"""Which of several stores a bucket or container of one name lies in."""

from __future__ import annotations

import pytest
from fsspec.config import conf

from stagesink.sinks._hosts import host_of

KEY = "AccountName=acc;AccountKey=c2VjcmV0"


@pytest.mark.parametrize(
    ("uri", "options", "environ", "host"),
    [
        ("s3://b/x", {}, {}, ""),
        ("s3://b/x", {"endpoint_url": "http://minio:9000/"}, {"AWS_ENDPOINT_URL": "http://other"}, "http://minio:9000"),
        ("s3a://b/x", {"client_kwargs": {"endpoint_url": "http://minio:9000"}}, {}, "http://minio:9000"),
        ("s3://b/x", {}, {"AWS_ENDPOINT_URL_S3": "http://s3", "AWS_ENDPOINT_URL": "http://all"}, "http://s3"),
        ("s3://b/x", {"endpoint_url": "http://me:word@minio"}, {}, "http://***@minio"),
        ("az://c/x", {}, {}, ""),
        ("az://c/x", {"account_name": "acc", "account_key": "x"}, {}, "https://acc.blob.core.windows.net"),
        ("az://c/x", {"connection_string": KEY}, {}, "https://acc.blob.core.windows.net"),
        ("az://c/x", {}, {"AZURE_STORAGE_CONNECTION_STRING": KEY}, "https://acc.blob.core.windows.net"),
        ("az://c/x", {}, {"AZURE_STORAGE_ACCOUNT_NAME": "acc"}, "https://acc.blob.core.windows.net"),
        (
            "az://c/x",
            {"account_name": "other", "account_key": "a2V5"},
            {"AZURE_STORAGE_CONNECTION_STRING": KEY},
            "https://acc.blob.core.windows.net",
        ),
        ("abfs://c/x", {"connection_string": f"{KEY};BlobEndpoint=http://h:1/acc;"}, {}, "http://h:1/acc"),
        (
            "az://c/x",
            {"connection_string": f"DefaultEndpointsProtocol=http;{KEY};EndpointSuffix=core.chinacloudapi.cn"},
            {},
            "http://acc.blob.core.chinacloudapi.cn",
        ),
        ("gs://b/x", {}, {"STORAGE_EMULATOR_HOST": "http://h:1"}, "http://h:1"),
        ("gs://b/x", {"endpoint_url": "http://h:2"}, {}, "http://h:2"),
        ("sftp://h/x", {"endpoint_url": "http://minio:9000"}, {}, ""),
    ],
)
def test_the_address_of_a_store(uri: str, options: dict[str, object], environ: dict[str, str], host: str) -> None:
    assert host_of(uri, options, environ) == host


@pytest.mark.parametrize(
    ("protocol", "uri", "option", "value", "host"),
    [
        ("s3", "s3a://b/x", "endpoint_url", "http://minio:9000", "http://minio:9000"),
        ("az", "abfs://c/x", "connection_string", KEY, "https://acc.blob.core.windows.net"),
        ("gcs", "gs://b/x", "endpoint_url", "http://h:2", "http://h:2"),
    ],
)
def test_fsspecs_own_configuration_goes_after_the_options(
    protocol: str, uri: str, option: str, value: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(conf, protocol, {option: value})
    assert host_of(uri, {}, {}) == host
    assert host_of(uri, {option: value.replace("acc", "other").replace("http://", "http://other.")}, {}) != host
