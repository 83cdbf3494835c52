"""The suite finds what is wrong: for each clause a sink that breaks it, and the tests that say so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stagesink.testing import SinkConformance

BROKEN = """
import io, threading, uuid
from urllib.parse import unquote
import pytest
from stagesink.artifacts import ArtifactKey, MemorySource, StoredArtifact
from stagesink.errors import SinkError
from stagesink.sinks._http.parts import read
from stagesink.sinks.local import LocalSink
from stagesink.sinks.memory import MemorySink
from stagesink.testing import SinkConformance


class Small(SinkConformance):
    kind = MemorySink
    many = 1_005
    large_bytes = 72 << 20
    part_bytes = 1 << 20
    shared_between_processes = False
    exemptions = {8: "kept in memory"}

    @pytest.fixture
    def sink(self):
        return self.kind(uuid.uuid4().hex)


class Torn(MemorySink):
    def put(self, key, source, *, on_bytes=None):
        data = source.open().read()
        super().put(key, MemorySource(data[: len(data) // 2]))
        return super().put(key, MemorySource(data), on_bytes=on_bytes)


class KeepsPart(MemorySink):
    def put(self, key, source, *, on_bytes=None):
        data = b""
        try:
            stream = source.open()
            while chunk := stream.read(1000):
                data += chunk
        finally:
            stored = super().put(key, MemorySource(data), on_bytes=on_bytes)
        return stored


class KeepsOld(MemorySink):
    def put(self, key, source, *, on_bytes=None):
        return self.stat(key) or super().put(key, source, on_bytes=on_bytes)


class Echoes(MemorySink):
    def put(self, key, source, *, on_bytes=None):
        stored = super().put(key, source, on_bytes=on_bytes)
        return StoredArtifact(key, stored.uri, stored.size, {"md5": "0" * 32})


class OnePage(MemorySink):
    def list(self, run_id, prefix=""):
        return iter(list(super().list(run_id, prefix))[:1000])


class PrefixOfText(MemorySink):
    def list(self, run_id, prefix=""):
        return (stored for stored in super().list(run_id) if stored.key.path.startswith(prefix))


class Strict(MemorySink):
    def delete(self, key):
        del self._store.objects[key]


class Wraps(MemorySink):
    def put(self, key, source, *, on_bytes=None):
        try:
            return super().put(key, source, on_bytes=on_bytes)
        except Exception as error:
            raise SinkError(str(error)) from error


class Unpicklable(MemorySink):
    def __init__(self, name):
        super().__init__(name)
        self.lock = threading.Lock()

    def __reduce__(self):
        return Unpicklable, (self.lock,)


class InPages(LocalSink):
    def put(self, key, source, *, on_bytes=None):
        whole = read(source.open(), 72 << 20)  # straight from the system, of which Python knows nothing
        return super().put(key, source, on_bytes=on_bytes)


class Unquotes(MemorySink):
    def put(self, key, source, *, on_bytes=None):
        return super().put(ArtifactKey(key.run_id, unquote(key.path, errors="replace").replace("\\0", "_")), source)


class CountsTwice(MemorySink):
    def put(self, key, source, *, on_bytes=None):
        if on_bytes:
            on_bytes(1)
        return super().put(key, source, on_bytes=on_bytes)


class TestTorn(Small): kind = Torn
class TestKeepsPart(Small): kind = KeepsPart
class TestKeepsOld(Small): kind = KeepsOld
class TestEchoes(Small): kind = Echoes
class TestOnePage(Small): kind = OnePage
class TestPrefixOfText(Small): kind = PrefixOfText
class TestStrict(Small): kind = Strict
class TestWraps(Small): kind = Wraps
class TestUnpicklable(Small): kind = Unpicklable
class TestInMemory(Small): exemptions = {}
class TestInPages(Small): kind, exemptions = InPages, {}
class TestUnquotes(Small): kind = Unquotes
class TestCountsTwice(Small): kind = CountsTwice
class TestRight(Small): pass
"""


CLAUSE_BROKEN_BY = {
    "Torn": 1,
    "KeepsPart": 1,
    "KeepsOld": 2,
    "Echoes": 3,
    "OnePage": 4,
    "PrefixOfText": 4,
    "Strict": 5,
    "Wraps": 6,
    "Unpicklable": 7,
    "InMemory": 8,
    "InPages": 8,
    "Unquotes": 9,
    "CountsTwice": 10,
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of all the broken sinks, one line per test."""
    folder: Path = tmp_path_factory.mktemp("broken")
    (folder / "test_broken.py").write_text(BROKEN)
    chosen = [f"(Test{kind} and clause_{clause:02})" for kind, clause in CLAUSE_BROKEN_BY.items()]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=no", "-v", "-rs", "test_broken.py"]
    command += ["-k", " or ".join([*chosen, "TestRight"])]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100).stdout


def outcomes(report: str, kind: str, outcome: str) -> set[int]:
    """Clauses of which a test had this outcome."""
    found = re.findall(rf"::Test{kind}::test_clause_(\d\d)_.* {outcome}", report)
    return {int(clause) for clause in found}


@pytest.mark.once
@pytest.mark.parametrize(("kind", "clause"), CLAUSE_BROKEN_BY.items())
def test_a_sink_that_breaks_a_clause_fails_it(report: str, kind: str, clause: int) -> None:
    if kind == "InPages" and not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells what memory a process has that Python does not know of")
    assert clause in outcomes(report, kind, "FAILED"), report[-3000:]


def test_a_sink_that_is_right_passes_all_but_what_it_is_exempt_from(report: str) -> None:
    assert outcomes(report, "Right", "FAILED") == set()
    assert outcomes(report, "Right", "ERROR") == set()
    assert outcomes(report, "Right", "PASSED") == {1, 2, 3, 4, 5, 6, 7, 9, 10}


def test_an_exemption_shows_its_reason(report: str) -> None:
    assert "exempt: kept in memory" in report


def test_an_exemption_of_what_does_not_exist_is_an_error() -> None:
    with pytest.raises(TypeError, match="'test_clause_99_nothing', which is no clause and no test"):
        type("Mine", (SinkConformance,), {"exemptions": {"test_clause_99_nothing": "because"}})
    with pytest.raises(TypeError, match="names 11"):
        type("Mine", (SinkConformance,), {"exemptions": {11: "because"}})


def test_an_exemption_needs_a_reason() -> None:
    with pytest.raises(TypeError, match="gives no reason for 8"):
        type("Mine", (SinkConformance,), {"exemptions": {8: " "}})


def test_every_clause_has_a_test() -> None:
    clauses = {int(name[12:14]) for name in dir(SinkConformance) if name.startswith("test_clause_")}
    assert clauses == set(range(1, 11))
