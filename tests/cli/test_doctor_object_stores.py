"""``stagesink doctor --sweep`` on stores in which killed processes leave parts behind."""

from __future__ import annotations


def test_sweep_aborts_what_killed_processes_left(run, moto, monkeypatch):
    options, bucket = moto.options(), "doctor"
    moto.boto3().create_bucket(Bucket=bucket)
    for name, value in {
        "AWS_ACCESS_KEY_ID": options["key"],
        "AWS_SECRET_ACCESS_KEY": options["secret"],
        "AWS_ENDPOINT_URL": options["endpoint_url"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    for folder in ("sweep", "other"):
        moto.boto3().create_multipart_upload(Bucket=bucket, Key=f"{folder}/run/model.bin")
    uri = f"s3://{bucket}/sweep"
    assert "swept" not in run("doctor", "-s", uri, "--json").json
    answer = run("doctor", "-s", uri, "--sweep", "--json")
    assert answer.json["swept"] == [f"{uri}/run/model.bin"]
    assert answer.json["probe"][-1]["step"] == "sweep"
    assert "Nothing unfinished" in run("doctor", "-s", uri, "--sweep").out


def test_a_store_that_is_not_looked_through(run, azurite, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.connection_string)
    answer = run("doctor", "-s", "az://stagesink/sweep", "--sweep", "--json")
    assert answer.json["swept"] == []
    assert answer.json["ok"] is True
    said = " ".join(run("doctor", "-s", "az://stagesink/sweep", "--sweep").out.split())
    assert "Not swept: what uploads leave unfinished is looked for on S3 alone" in said
    assert "Nothing unfinished" not in said
