"""Tokens: where they come from, how long they are used, and what is said when there is none."""

from __future__ import annotations

import base64
import json
import os
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from azureml_lines import Job
from servers import installed

pytest.importorskip("urllib3", reason="comes with the extra azureml")

from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import MissingExtra, SinkAuthError, SinkError, TransientSinkError
from stagesink.sinks.azureml.auth import SCOPE, Tokens, expiry, refused
from stagesink.sinks.protocol import ArtifactSink
from stagesink.sinks.registry import open_sink


def jwt(seconds: object, name: str = "t") -> str:
    """Return what looks like a token that ends so many seconds from now."""
    ends = time.time() + seconds if isinstance(seconds, int | float) else seconds
    body = base64.urlsafe_b64encode(json.dumps({"exp": ends, "name": name}).encode()).rstrip(b"=").decode()
    return f"header.{body}.signature"


@dataclass
class Given:
    token: str
    expires_on: float


@dataclass
class Credential:
    """One of azure-identity's, as far as it is used."""

    seconds: list[float]
    asked: list[str] = field(default_factory=list)

    def get_token(self, *scopes: str, **kwargs: object) -> Given:
        self.asked += scopes
        left = self.seconds.pop(0)
        return Given(f"token-{len(self.asked)}", time.time() + left)


def sent(tokens: Tokens) -> str:
    return tokens.headers()["Authorization"].removeprefix("Bearer ")


# -- the environment's -------------------------------------------------------------------------------------------------


def test_the_environment_is_read_at_each_call() -> None:
    environ = {"MLFLOW_TRACKING_TOKEN": jwt(3600, "one")}
    tokens = Tokens(environ=environ)
    assert sent(tokens) == environ["MLFLOW_TRACKING_TOKEN"]
    environ["MLFLOW_TRACKING_TOKEN"] = jwt(3600, "two")
    assert sent(tokens) == environ["MLFLOW_TRACKING_TOKEN"]


@pytest.mark.parametrize("seconds", [None, -5, 0])
def test_the_second_variable_serves_where_the_first_does_not(seconds: float | None) -> None:
    first = "" if seconds is None else jwt(seconds)
    second = jwt(3600)
    assert sent(Tokens(environ={"MLFLOW_TRACKING_TOKEN": first, "AZUREML_RUN_TOKEN": second})) == second


def test_a_token_that_says_nothing_of_its_end_is_used() -> None:
    assert sent(Tokens(environ={"MLFLOW_TRACKING_TOKEN": "opaque"})) == "opaque"


def test_a_token_from_a_file_with_its_line_end_is_used() -> None:
    assert sent(Tokens(environ={"MLFLOW_TRACKING_TOKEN": " opaque\r\n"})) == "opaque"


@pytest.mark.parametrize("token", ["two words", "a\nb", "tökén", "a\x00b"])
def test_what_can_be_no_token_is_not_sent_and_not_shown(token: str) -> None:
    with pytest.raises(SinkAuthError, match="What MLFLOW_TRACKING_TOKEN holds is no token") as caught:
        Tokens(environ={"MLFLOW_TRACKING_TOKEN": token}).headers()
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("token", "ends"),
    [
        ("a.eyJleHAiOm51bGx9.c", None),
        ("a.eyJleHAiOiJ0b21vcnJvdyJ9.c", None),
        ("a.b", None),
        ("a.!.c", None),
        ("a.W10.c", None),
        ("a.bm90IGpzb24.c", None),
        ("a.eyJleHAiOjEwfQ.c", 10.0),
        ("a.eyJleHAiOjEwLjV9.c", 10.5),
    ],
)
def test_when_a_token_ends(token: str, ends: float | None) -> None:
    assert expiry(token) == ends


@pytest.fixture
def no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity", None)  # as if it were not installed


@pytest.mark.usefixtures("no_identity")
class TestWithoutAzureIdentity:
    def test_no_token_names_the_extra(self) -> None:
        with pytest.raises(MissingExtra) as caught:
            Tokens(environ={}).headers()
        assert "pip install 'stagesink[azureml]'" in str(caught.value)

    def test_an_ended_token_says_so(self) -> None:
        with pytest.raises(SinkAuthError) as caught:
            Tokens(environ={"AZUREML_RUN_TOKEN": jwt(-5)}).headers()
        assert "The token in AZUREML_RUN_TOKEN has ended by this machine's clock" in str(caught.value)
        assert "`az login`" in str(caught.value)

    def test_one_that_is_about_to_end_serves_while_there_is_no_other(self) -> None:
        token = jwt(20)
        assert sent(Tokens(environ={"MLFLOW_TRACKING_TOKEN": token})) == token

    def test_no_token_past_its_end_ever_arrives(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        """With the clock put forward, instead of a wait: what is sent then would be past its end."""
        job.sink.put(job.key(), MemorySource(b"x"))
        job.lines.front.forget()
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 7200)
        with pytest.raises(SinkAuthError, match="has ended"):
            job.sink.put(job.key(), MemorySource(b"x"))
        assert job.lines.front.requests == []


# -- renewed by the service --------------------------------------------------------------------------------------------


def test_a_jobs_token_is_renewed_before_its_end(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    short = job.service.token(expires_in=120)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", short)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: job.sink.put(job.key(str(number)), MemorySource(b"x")), range(20)))
    assert job.service.calls.count("token") == 1
    used = [headers["authorization"].removeprefix("Bearer ") for headers in job.lines.front.headers]
    assert used.count(short) == 1  # for the renewal itself
    assert all((expiry(token) or 0) > time.time() + 900 for token in used if token != short)


def test_one_that_is_renewed_in_the_environment_goes_first(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", job.service.token(expires_in=120))
    job.sink.stat(job.key())
    newer = job.service.token(expires_in=1800)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", newer)
    job.lines.front.forget()
    job.sink.stat(job.key())
    assert {headers["authorization"] for headers in job.lines.front.headers} == {f"Bearer {newer}"}


def test_a_service_that_does_not_renew_is_not_asked_again_at_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    short = job.service.token(expires_in=600)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", short)
    job.service.faults.answer(404, call="token", times=9)
    for number in range(5):
        job.sink.put(job.key(str(number)), MemorySource(b"x"))
    assert job.service.calls.count("token") == 1


@pytest.mark.usefixtures("no_identity")
def test_an_ended_token_is_not_renewed() -> None:
    def renew(token: str) -> str:
        raise AssertionError("no service takes it")

    with pytest.raises(SinkAuthError, match="has ended"):
        Tokens(environ={"MLFLOW_TRACKING_TOKEN": jwt(-1)}, renew=renew).headers()


# -- refused before their end ------------------------------------------------------------------------------------------


def sent_by(job: Job) -> list[str]:
    return [headers["authorization"].removeprefix("Bearer ") for headers in job.lines.front.headers]


@dataclass
class Signing:
    """A credential whose tokens the service makes; with ``same`` it gives the first one again and again, as a cache."""

    job: Job
    same: bool = False
    given: list[str] = field(default_factory=list)

    def get_token(self, *scopes: str, **kwargs: object) -> Given:
        # Each ends at another time, so each is another.
        self.given.append(
            self.given[0] if self.same and self.given else self.job.service.token(expires_in=3600 + len(self.given))
        )
        return Given(self.given[-1], time.time() + 3600)


def opened_with(credential: Signing) -> ArtifactSink:
    return open_sink("azureml:", storage_options={"credential": credential})


def test_a_revoked_token_of_a_credential_is_asked_for_anew_once_and_the_call_repeated(job: Job) -> None:
    credential = Signing(job)
    sink = opened_with(credential)
    sink.put(job.key("before"), MemorySource(b"x"))
    job.service.revoke(credential.given[0])
    job.lines.front.forget()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: sink.put(job.key(str(number)), MemorySource(b"x")), range(20)))
    assert len(credential.given) == 2
    assert len(list(sink.list(job.run_id))) == 21
    first, second = credential.given
    assert set(sent_by(job)) == {first, second}
    assert sent_by(job).count(first) <= 8  # of each thread that was under way, one


@pytest.mark.parametrize("same", [True, False], ids=["a cache", "refused as well"])
def test_a_credential_that_has_no_better_one_is_not_asked_for_each_file(job: Job, same: bool) -> None:
    credential = Signing(job, same=same)
    sink = opened_with(credential)
    job.service.faults.answer(401, times=99)
    for number in range(5):
        with pytest.raises(SinkAuthError, match="answered 401"):
            sink.stat(job.key(str(number)))
    assert len(credential.given) == 2
    assert len(sent_by(job)) == 5 + (not same)


def test_a_revoked_token_of_the_environment_gives_way_to_the_other(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    revoked, good = job.service.token(expires_in=3000), job.service.token(expires_in=3100)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", revoked)
    monkeypatch.setenv("AZUREML_RUN_TOKEN", good)
    job.service.revoke(revoked)
    assert job.sink.stat(job.key()) is None
    assert sent_by(job) == [revoked, good]
    assert job.sink.stat(job.key()) is None
    assert sent_by(job) == [revoked, good, good]


def test_the_second_variable_is_not_looked_at_where_the_first_will_do() -> None:
    first = jwt(3600)
    assert sent(Tokens(environ={"MLFLOW_TRACKING_TOKEN": first, "AZUREML_RUN_TOKEN": "no token at all"})) == first


@pytest.mark.usefixtures("no_identity")
@pytest.mark.parametrize(("seconds", "other"), [(3600, True), (-5, False)], ids=["good", "ended"])
def test_one_that_somebody_renewed_meanwhile_is_taken(seconds: float, other: bool) -> None:
    environ = {"MLFLOW_TRACKING_TOKEN": jwt(3600, "one")}
    tokens = Tokens(environ=environ)
    sent_before = tokens.headers()
    assert not tokens.other_than(sent_before)
    environ["MLFLOW_TRACKING_TOKEN"] = jwt(seconds, "two")
    assert tokens.other_than(sent_before) is other


@pytest.mark.usefixtures("no_identity")
def test_the_environments_only_token_is_sent_once_where_it_is_refused(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZUREML_RUN_TOKEN", os.environ["MLFLOW_TRACKING_TOKEN"])
    job.service.revoke(os.environ["MLFLOW_TRACKING_TOKEN"])
    for number in range(2):
        with pytest.raises(SinkAuthError, match="answered 401"):
            job.sink.stat(job.key())
        assert len(sent_by(job)) == number + 1


# -- credentials -------------------------------------------------------------------------------------------------------


def test_a_credential_is_asked_for_the_scope_and_kept_until_its_end() -> None:
    credential = Credential([3600, 3600])
    tokens = Tokens(credential, environ={"MLFLOW_TRACKING_TOKEN": jwt(3600)})
    assert [sent(tokens) for _ in range(3)] == ["token-1"] * 3
    assert credential.asked == [SCOPE]


def test_a_credentials_token_is_not_used_past_its_end() -> None:
    credential = Credential([30, 30, 3600])  # within a minute of its end it is none
    assert [sent(Tokens(credential)), sent(Tokens(credential))] == ["token-1", "token-2"]
    tokens = Tokens(Credential([30, 3600, 3600]))
    assert [sent(tokens), sent(tokens), sent(tokens)] == ["token-1", "token-2", "token-2"]


@pytest.mark.parametrize("error", [SinkAuthError("refused"), TransientSinkError("no route")], ids=repr)
def test_a_kept_token_serves_until_its_end_while_its_renewal_fails(
    error: SinkError, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Once(Credential):
        def get_token(self, *scopes: str, **kwargs: object) -> Given:
            if self.seconds:
                return super().get_token(*scopes, **kwargs)
            self.asked += scopes
            raise error

    credential = Once([300])
    tokens, now = Tokens(credential), time.time
    assert sent(tokens) == "token-1"
    monkeypatch.setattr(time, "time", lambda: now() + 270)
    assert [sent(tokens), sent(tokens)] == ["token-1"] * 2
    assert len(credential.asked) == (2 if isinstance(error, SinkAuthError) else 3)  # what was refused is not asked soon
    monkeypatch.setattr(time, "time", lambda: now() + 301)
    with pytest.raises(type(error)):
        tokens.headers()


def test_many_threads_ask_once() -> None:
    credential = Credential([3600])
    tokens = Tokens(credential)
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: sent(tokens), range(64))) == {"token-1"}


class _Refusing:
    asked = 0

    def get_token(self, *scopes: str, **kwargs: object) -> Given:
        from azure.core.exceptions import ClientAuthenticationError

        self.asked += 1
        raise ClientAuthenticationError("AADSTS700016: s3cret")


def test_a_login_that_fails_is_not_tried_for_each_object() -> None:
    installed("azure.core")
    refusing = _Refusing()
    tokens = Tokens(refusing)
    for _ in range(3):
        with pytest.raises(SinkAuthError, match="Azure gave no token") as caught:
            tokens.headers()
        assert "`az login`" in str(caught.value)
        assert "s3cret" not in str(caught.value)
    assert refusing.asked == 1


def test_a_login_that_cannot_be_reached_may_be_tried_again() -> None:
    installed("azure.core")
    from azure.core.exceptions import ServiceRequestError

    class Away:
        def get_token(self, *scopes: str, **kwargs: object) -> Given:
            raise ServiceRequestError("no route")

    with pytest.raises(TransientSinkError):
        Tokens(Away()).headers()


def test_a_given_credential_is_asked_instead_of_the_environment(job: Job) -> None:
    @dataclass
    class OfTheService:
        token: str

        def get_token(self, *scopes: str, **kwargs: object) -> Given:
            return Given(self.token, time.time() + 3600)

    token = job.service.token(expires_in=1234)
    sink = open_sink("azureml:", storage_options={"credential": OfTheService(token)})
    sink.put(job.key(), MemorySource(b"x"))
    assert {headers["authorization"] for headers in job.lines.front.headers} == {f"Bearer {token}"}
    sink.close()


def test_tokens_work_in_a_fork_whatever_the_parents_threads_do(no_identity: None) -> None:
    """A lock that was copied while it was held would be held for ever."""
    held, go_on = threading.Event(), threading.Event()

    class Slow:
        def get_token(self, *scopes: str, **kwargs: object) -> Given:
            if threading.current_thread() is not threading.main_thread():
                held.set()
                go_on.wait(60)
            return Given("token", time.time() + 3600)

    tokens = Tokens(Slow())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(tokens.headers)
        assert held.wait(60)
        child = _forked(lambda: sent(tokens) == "token")
        go_on.set()
        waiting.result()
    assert child


def _forked(check: object) -> bool:
    """Tell whether a forked child says yes, within a minute."""
    import multiprocessing
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(
            target=lambda: os._exit(0 if check() else 1),  # type: ignore[operator]
            daemon=True,
        )
        process.start()
    process.join(60)
    code = process.exitcode
    process.kill()
    process.join()
    process.close()
    return code == 0


# -- what a refusal is taken for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("minutes", "way"), [(20, "behind"), (-20, "ahead")])
def test_a_clock_that_is_wrong_is_named(minutes: int, way: str) -> None:
    date = format_datetime(datetime.now(timezone.utc) + timedelta(minutes=minutes), usegmt=True)
    error = refused("It could not be put", "host", "401", date)
    assert f"this machine's clock is 20 minutes {way}. Set the clock" in str(error)


@pytest.mark.parametrize("date", [None, "", "yesterday", "now"])
def test_a_clock_that_is_right_is_not(date: str | None) -> None:
    if date == "now":
        date = format_datetime(datetime.now(timezone.utc), usegmt=True)
    error = refused("It could not be put", "host", "401", date)
    assert "clock" not in str(error)
    assert error.hint


def test_a_sink_with_a_credential_is_pickled_with_it(job: Job) -> None:
    sink = open_sink("azureml:", storage_options={"credential": Credential([3600])})
    copy = pickle.loads(pickle.dumps(sink))
    assert copy._options["credential"].seconds == [3600]
    store = open_sink("azureml://datastores/x", storage_options={"credential": Credential([3600])})
    assert pickle.loads(pickle.dumps(store))._options["credential"].seconds == [3600]
    assert isinstance(job.key(), ArtifactKey)
