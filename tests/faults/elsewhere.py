"""A server that sends everybody elsewhere, and what arrives there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from faults.proxy import Answer, FaultProxy
from servers import free_port

from stagesink.artifacts import ArtifactKey, MemorySource
from stagesink.errors import StagesinkError
from stagesink.sinks import ArtifactSink

STATUSES = (301, 302, 303, 307, 308)


class Elsewhere:
    """Another host: another name for this machine, and another port."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        proxy.plan(Answer(404), times=1000)

    @property
    def port(self) -> int:
        return self._proxy.port

    def answer(self, status: int, path: str = "/taken") -> Answer:
        """The answer that sends a client there."""
        return Answer(status, headers={"Location": f"http://localhost:{self._proxy.port}{path}"})

    @property
    def heard(self) -> str:
        """Everything that was sent there but for the bytes of objects, in one text."""
        return "\n".join([*map(str, self._proxy.requests), *map(str, self._proxy.headers)])


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """Start it; it is stopped at the end of the block."""
    with FaultProxy(free_port()) as proxy:
        yield Elsewhere(proxy)


def use(sink: ArtifactSink, run_id: str) -> None:
    """Ask a sink for all it can do, whatever comes of it."""
    key = ArtifactKey(run_id, "metrics.json")
    calls = (
        lambda: sink.put(key, MemorySource(b"x" * 100)),
        lambda: sink.stat(key),
        lambda: sink.open(key).read(),
        lambda: list(sink.list(run_id)),
        lambda: sink.delete(key),
    )
    for call in calls:
        with suppress(StagesinkError):
            call()


def assert_told_nothing(there: Elsewhere, secrets: Iterable[str]) -> None:
    """Check that none of these, and no header that says who we are, was sent there."""
    heard = there.heard.lower()
    for secret in (*secrets, "'authorization'", "'proxy-authorization'", "'cookie'"):
        assert secret.lower() not in heard
