"""The contract of :class:`~stagesink.sinks.protocol.ArtifactSink` as tests, one or more for each numbered clause."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import pickle
import re
import threading
import unicodedata
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import ClassVar, TypeVar

import pytest

from stagesink.artifacts import ArtifactKey, MemorySource, Source, StoredArtifact
from stagesink.errors import (
    ArtifactNotFound,
    DeleteNotSupported,
    SinkConflict,
    SinkError,
    SourceChanged,
    SourceUnreadable,
    TransferCancelled,
    TransientSinkError,
)
from stagesink.sinks.protocol import ArtifactSink
from stagesink.testing.memory import PeakMemory
from stagesink.testing.sources import GeneratedSource

T = TypeVar("T")

_CLAUSE = re.compile(r"test_clause_(\d\d)_")

NAMES = {
    "plain": "metrics.json",
    "nested": "a/b/c/d/e/f.bin",
    "space": "dir with space/a file .txt",
    "leading space": " dir/ file",
    "trailing space": "dir /file ",
    "percent": "100%/%2F%00%zz",
    "hash": "a#b/#c",
    "plus": "a+b/+",
    "question mark": "a?b/c?d=e",
    "query": "x?versionid=1&y=2;z",
    "equals": "epoch=3-step=100.ckpt",
    "quotes": 'it\'s "quoted" `so`',
    "brackets": "a[0-9]{x,y}(z)*",
    "dollar": "$HOME/~user/!x",
    "at and colon": "user@host:22/a:b",
    "dots": ".../..a/a../.hidden",
    "dash": "-rf/--force",
    "umlaut (NFC)": unicodedata.normalize("NFC", "Prüfling/größe.txt"),
    "umlaut (NFD)": unicodedata.normalize("NFD", "Prüfling/größe.txt"),
    "chinese": "模型/权重.bin",
    "right to left": "مرحبا/שלום",
    "emoji": "🚀/👩‍🔬.png",
    "255 bytes": f"long/{'x' * 255}",
    "255 bytes of unicode": f"long/{'ü' * 127}x",
    "deep": "/".join("d" * 20 for _ in range(30)),
    "version": "model?versionId=abc",
}


class SinkConformance:
    """Inherit, give it a ``sink`` fixture, and pytest checks the contract clause by clause.

        class TestMySink(SinkConformance):
            @pytest.fixture
            def sink(self, tmp_path):
                return MySink(tmp_path)

    Every test works in a run of its own, so all may share one store. What does not hold for a sink is exempted by name
    and with a reason, which the test report shows; nothing is left out in silence.

    Attributes
    ----------
    exemptions : mapping of str or int to str
        Reason by clause number or test name (``"test_clause_09_names[umlaut (NFD)]"`` names one case).
    part_bytes : int
        The sink's part size; objects a little larger are sent in two parts.
    many : int
        More objects than one page of a listing holds.
    large_bytes : int
        Size of the object that must go through in ``memory_bytes``.
    memory_bytes : int
        What a put or a read of it may take at most.
    overwrites : int
        How often an object is overwritten under its readers' eyes.
    shared_between_processes : bool
        Whether a parent process sees what its forked child puts.
    deletes : bool
        Whether the backend can remove an object. Where it cannot, ``delete`` says so and the object stays.
    """

    exemptions: ClassVar[Mapping[str | int, str]] = {}
    part_bytes: ClassVar[int] = 8 << 20
    many: ClassVar[int] = 1_005
    large_bytes: ClassVar[int] = 128 << 20
    memory_bytes: ClassVar[int] = 64 << 20
    overwrites: ClassVar[int] = 25
    shared_between_processes: ClassVar[bool] = True
    deletes: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        tests = {name for name in dir(cls) if name.startswith("test_")}
        clauses = {int(found.group(1)) for name in tests if (found := _CLAUSE.match(name))}
        for name, reason in cls.exemptions.items():
            if name not in clauses and str(name).partition("[")[0] not in tests:
                raise TypeError(f"{cls.__name__}.exemptions names {name!r}, which is no clause and no test.")
            if not reason.strip():
                raise TypeError(f"{cls.__name__}.exemptions gives no reason for {name!r}.")

    # -- for sink authors to override ----------------------------------------------------------------------------------

    @pytest.fixture
    def sink(self) -> ArtifactSink:
        """The sink under test, empty or not."""
        raise NotImplementedError("Override the `sink` fixture.")

    @pytest.fixture
    def unreachable_sink(self) -> ArtifactSink:
        """A sink whose backend does not answer."""
        pytest.skip(
            "no `unreachable_sink` fixture is given: this backend cannot be unreachable, or its author gave none"
        )

    def reopen(self, sink: ArtifactSink) -> ArtifactSink:
        """Return another sink on the same store; by default a pickled copy."""
        copy: ArtifactSink = pickle.loads(pickle.dumps(sink))
        return copy

    def new_run(self, sink: ArtifactSink, near: str = "") -> str:
        """Return a run that holds nothing. Override it where runs have to be made before they can be used.

        Parameters
        ----------
        sink : ArtifactSink
        near : str
            Another run, whose id should be the beginning of the new one's, where ids can be chosen.
        """
        return f"{near}0" if near else f"run-{uuid.uuid4().hex[:16]}"

    # -- what the tests stand on ---------------------------------------------------------------------------------------

    @pytest.fixture(autouse=True)
    def _exempt(self, request: pytest.FixtureRequest) -> None:
        name = request.node.name
        clause = _CLAUSE.match(name)
        for wanted in (name, name.partition("[")[0], int(clause.group(1)) if clause else None):
            if wanted is not None and wanted in self.exemptions:
                pytest.skip(f"exempt: {self.exemptions[wanted]}")

    @pytest.fixture
    def run_id(self, sink: ArtifactSink) -> Iterator[str]:
        run_id = self.new_run(sink)
        yield run_id
        if self.deletes:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(sink.delete, [stored.key for stored in sink.list(run_id)]))

    @pytest.fixture
    def key(self, run_id: str) -> ArtifactKey:
        return ArtifactKey(run_id, "folder/object.bin")

    def _delete(self, sink: ArtifactSink, key: ArtifactKey) -> bool:
        """Remove the object; where the backend cannot, see that the sink says so and leaves it."""
        if self.deletes:
            sink.delete(key)
            return True
        with pytest.raises(DeleteNotSupported):
            sink.delete(key)
        assert sink.stat(key) is not None
        return False

    # -- 1: all or nothing ---------------------------------------------------------------------------------------------

    def test_clause_01_readers_see_old_or_new_and_never_a_part(self, sink: ArtifactSink, key: ArtifactKey) -> None:
        sizes = {value: 40_000 + 7_001 * value for value in range(self.overwrites)}
        done = threading.Event()

        def watch() -> int:
            reads = 0
            while not done.is_set() or not reads:
                data = _read_or_none(sink, key)
                if data is not None:
                    reads += 1
                    assert len(set(data)) == 1, "two objects mixed"
                    assert len(data) == sizes[data[0]], "a part of an object"
                stored = _patiently(lambda: sink.stat(key))
                assert stored is None or stored.size in sizes.values()
            return reads

        with ThreadPoolExecutor(3) as pool:
            watchers = [pool.submit(watch) for _ in range(3)]
            try:
                for value, size in sizes.items():
                    source = MemorySource(bytes([value]) * size)
                    _patiently(lambda source=source: sink.put(key, source))  # type: ignore[misc]
            finally:
                done.set()
            for watcher in watchers:
                assert watcher.result() > 0

    def test_clause_01_readers_of_many_parts_see_one_object(self, sink: ArtifactSink, key: ArtifactKey) -> None:
        size = 2 * self.part_bytes + 4321
        sink.put(key, GeneratedSource(size, seed=1))
        with sink.open(key) as stream:
            digest = hashlib.sha256(stream.read(1000))
            sink.put(key, GeneratedSource(size, seed=2))
            try:
                while data := stream.read(1 << 20):
                    digest.update(data)
            except (TransientSinkError, ArtifactNotFound):
                return  # it noticed
        assert digest.hexdigest() == GeneratedSource(size, seed=1).digest()

    @pytest.mark.parametrize("parts", [0, 1, 2])
    def test_clause_01_a_source_that_fails_leaves_nothing(
        self, sink: ArtifactSink, run_id: str, key: ArtifactKey, parts: int
    ) -> None:
        self._fail(sink, key, parts)
        assert sink.stat(key) is None
        assert list(sink.list(run_id)) == []
        with pytest.raises(ArtifactNotFound):
            sink.open(key).read()

    @pytest.mark.parametrize("parts", [0, 1, 2])
    def test_clause_01_a_source_that_fails_leaves_the_old_object(
        self, sink: ArtifactSink, run_id: str, key: ArtifactKey, parts: int
    ) -> None:
        before = sink.put(key, MemorySource(b"old"))
        self._fail(sink, key, parts)
        assert _same(sink.stat(key), before)
        assert _read(sink, key) == b"old"
        assert [stored.key for stored in sink.list(run_id)] == [key]

    @pytest.mark.parametrize("error", [TransferCancelled("stopped"), KeyboardInterrupt()], ids=["cancelled", "ctrl-c"])
    def test_clause_01_a_put_stopped_by_its_callback_leaves_nothing(
        self, sink: ArtifactSink, run_id: str, key: ArtifactKey, error: BaseException
    ) -> None:
        def stop(_: int) -> None:
            raise error

        with pytest.raises(type(error)):
            sink.put(key, GeneratedSource(3 << 20), on_bytes=stop)
        gc.collect()
        assert sink.stat(key) is None
        assert list(sink.list(run_id)) == []

    def test_clause_01_two_writers_of_one_key_leave_one_whole_object(
        self, sink: ArtifactSink, key: ArtifactKey
    ) -> None:
        sources = [GeneratedSource(300_000 + seed, seed=seed) for seed in range(8)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda source: _patiently(lambda: sink.put(key, source)), sources))
        assert _read(sink, key) in [source.read() for source in sources]

    def _fail(self, sink: ArtifactSink, key: ArtifactKey, parts: int) -> None:
        """Put a source that fails in the middle of part ``parts``, counted from 0."""
        error = SourceUnreadable("The disk gave up.")
        at = parts * self.part_bytes + 50_000
        with pytest.raises(SourceUnreadable) as caught:
            sink.put(key, GeneratedSource(at + 1_000_000, fails_after=at, error=error))
        assert caught.value is error
        del caught
        gc.collect()  # some files commit when they are collected

    # -- 2: overwriting ------------------------------------------------------------------------------------------------

    def test_clause_02_put_overwrites(self, sink: ArtifactSink, run_id: str, key: ArtifactKey) -> None:
        for data in (b"short", b"much longer than before", b"", b"x"):
            sink.put(key, MemorySource(data))
            assert _read(sink, key) == data
            assert [(stored.key, stored.size) for stored in sink.list(run_id)] == [(key, len(data))]

    def test_clause_02_the_same_bytes_twice_change_nothing(
        self, sink: ArtifactSink, run_id: str, key: ArtifactKey
    ) -> None:
        first = sink.put(key, MemorySource(b"same"))
        assert sink.put(key, MemorySource(b"same")) == first
        assert _read(sink, key) == b"same"
        assert len(list(sink.list(run_id))) == 1

    # -- 3: what the backend says --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("extra", [None, 1], ids=["small", "two parts"])
    def test_clause_03_stat_returns_what_put_returned(
        self, sink: ArtifactSink, key: ArtifactKey, extra: int | None
    ) -> None:
        source = GeneratedSource(12_345 if extra is None else self.part_bytes + extra)
        stored = sink.put(key, source)
        assert stored.key == key
        assert stored.size == source.length
        assert _same(sink.stat(key), stored)
        assert _same(self.reopen(sink).stat(key), stored)

    @pytest.mark.parametrize("extra", [None, 1], ids=["small", "two parts"])
    def test_clause_03_digests_are_true(self, sink: ArtifactSink, key: ArtifactKey, extra: int | None) -> None:
        source = GeneratedSource(12_345 if extra is None else self.part_bytes + extra)
        stored = sink.put(key, source)
        for told in (stored, sink.stat(key), *sink.list(key.run_id)):
            assert told is not None
            for algorithm in told.digests.keys() & {"md5", "sha1", "sha256", "sha512"}:
                assert told.digests[algorithm] == source.digest(algorithm)

    def test_clause_03_the_address_is_printable(self, sink: ArtifactSink, key: ArtifactKey) -> None:
        assert sink.uri.isprintable()
        assert sink.put(key, MemorySource(b"x")).uri.isprintable()

    # -- 4: listing ----------------------------------------------------------------------------------------------------

    def test_clause_04_list_yields_every_object_once_over_many_pages(self, sink: ArtifactSink, run_id: str) -> None:
        keys = {ArtifactKey(run_id, f"many/{number % 20:02}/{number:05}.bin") for number in range(self.many)}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: sink.put(key, MemorySource(key.path[-4:].encode())), keys))
            for prefix in ("", "many"):
                listed = [stored.key for stored in sink.list(run_id, prefix)]
                assert len(listed) == len(keys)
                assert set(listed) == keys

    def test_clause_04_a_prefix_is_an_object_or_a_folder(self, sink: ArtifactSink, run_id: str) -> None:
        paths = {"a/b", "a/c/d", "ab", "a b/x", "b", "c/a/x"}
        for path in paths:
            sink.put(ArtifactKey(run_id, path), MemorySource(path.encode()))
        wanted = {
            "": paths,
            "a": {"a/b", "a/c/d"},
            "a/c": {"a/c/d"},
            "a/b": {"a/b"},
            "b": {"b"},
            "c": {"c/a/x"},
            "d": set(),
            "a/b/c": set(),
        }
        for prefix, expected in wanted.items():
            listed = [stored.key.path for stored in sink.list(run_id, prefix)]
            assert sorted(listed) == sorted(expected), f"prefix {prefix!r}"

    def test_clause_04_list_says_what_stat_says(self, sink: ArtifactSink, key: ArtifactKey) -> None:
        sink.put(key, MemorySource(b"twelve bytes"))
        (listed,) = sink.list(key.run_id)
        assert _same(sink.stat(key), listed)

    def test_clause_04_nothing_half_written_is_listed(self, sink: ArtifactSink, run_id: str, key: ArtifactKey) -> None:
        seen: list[StoredArtifact | None] = []

        def look(_: int) -> None:
            seen.extend(sink.list(run_id))
            seen.append(sink.stat(key))

        stored = sink.put(key, GeneratedSource(3 << 20), on_bytes=look)
        assert seen[0] is None
        whole = stored.key, stored.uri, stored.size
        assert all(found is None or (found.key, found.uri, found.size) == whole for found in seen)

    def test_clause_04_runs_are_apart(self, sink: ArtifactSink, run_id: str) -> None:
        longer = ArtifactKey(self.new_run(sink, near=run_id), "x")
        sink.put(longer, MemorySource(b"other"))
        try:
            assert list(sink.list(run_id)) == []
            sink.put(ArtifactKey(run_id, "x"), MemorySource(b"mine"))
            assert [stored.key.run_id for stored in sink.list(run_id)] == [run_id]
        finally:
            self._delete(sink, longer)

    # -- 5: what is missing --------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("path", ["missing", "missing/too", "there/is", "there/is/a/file"])
    def test_clause_05_a_missing_object(self, sink: ArtifactSink, run_id: str, path: str) -> None:
        there = ArtifactKey(run_id, "there/is/a")
        sink.put(there, MemorySource(b"file"))
        missing = ArtifactKey(run_id, path)
        assert sink.stat(missing) is None
        with pytest.raises(ArtifactNotFound):
            sink.open(missing).read()
        sink.delete(missing)
        assert _read(sink, there) == b"file"

    def test_clause_05_a_run_that_holds_nothing_is_empty(self, sink: ArtifactSink, run_id: str) -> None:
        assert list(sink.list(run_id)) == []
        assert list(sink.list(run_id, "folder")) == []

    def test_clause_05_delete_removes_one_object(self, sink: ArtifactSink, run_id: str, key: ArtifactKey) -> None:
        other = ArtifactKey(run_id, "folder/object.bin.2")
        for each in (key, other):
            sink.put(each, MemorySource(b"x"))
        if not self._delete(sink, key):
            return
        assert sink.stat(key) is None
        assert [stored.key for stored in sink.list(run_id)] == [other]
        sink.put(key, MemorySource(b"again"))
        assert _read(sink, key) == b"again"

    # -- 6: errors -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "error", [SourceChanged("It changed."), OSError(5, "Input/output error"), ValueError("anything")], ids=repr
    )
    def test_clause_06_errors_of_the_source_are_not_the_sinks(
        self, sink: ArtifactSink, key: ArtifactKey, error: Exception
    ) -> None:
        with pytest.raises(type(error)) as caught:
            sink.put(key, GeneratedSource(100_000, fails_after=50_000, error=error))
        assert caught.value is error

    def test_clause_06_an_object_and_a_folder_of_one_name(self, sink: ArtifactSink, run_id: str) -> None:
        """Both are kept apart, or the second is refused and the first is whole."""
        for first, second in (("x", "x/y"), ("z/y", "z")):
            one, two = ArtifactKey(run_id, first), ArtifactKey(run_id, second)
            sink.put(one, MemorySource(b"first"))
            try:
                sink.put(two, MemorySource(b"second"))
            except SinkConflict:
                assert sink.stat(two) is None
            else:
                assert _read(sink, two) == b"second"
                assert {one, two} <= {stored.key for stored in sink.list(run_id)}
                assert {one, two} >= {stored.key for stored in sink.list(run_id, first.partition("/")[0])}
            assert _read(sink, one) == b"first"

    def test_clause_06_an_unreachable_backend_is_a_transient_error(self, unreachable_sink: ArtifactSink) -> None:
        sink, key = unreachable_sink, ArtifactKey("run", "x")
        calls: list[Callable[[], object]] = [
            lambda: sink.put(key, MemorySource(b"x")),
            lambda: sink.put(key, GeneratedSource(self.part_bytes + 1)),
            lambda: sink.stat(key),
            lambda: sink.open(key).read(),
            lambda: list(sink.list("run")),
            lambda: sink.delete(key),
        ]
        for call in calls:
            with pytest.raises(TransientSinkError):
                call()

    def test_clause_06_errors_survive_pickling(self, sink: ArtifactSink, key: ArtifactKey) -> None:
        with pytest.raises(ArtifactNotFound) as caught:
            sink.open(key).read()
        copy = pickle.loads(pickle.dumps(caught.value))
        assert type(copy) is type(caught.value)
        assert str(copy) == str(caught.value)
        assert isinstance(copy, SinkError)

    # -- 7: threads, fork, pickling ------------------------------------------------------------------------------------

    def test_clause_07_many_threads_share_one_sink(self, sink: ArtifactSink, run_id: str) -> None:
        def work(number: int) -> None:
            key = ArtifactKey(run_id, f"thread-{number % 8}/{number:02}")
            source = GeneratedSource(20_000 + number, seed=number)
            assert _patiently(lambda: sink.put(key, source)).size == source.length
            assert _read(sink, key) == source.read()
            assert _patiently(lambda: sink.stat(key)) is not None
            listed = _patiently(lambda: list(sink.list(run_id, f"thread-{number % 8}")))
            assert key in {stored.key for stored in listed}
            if number % 2:
                self._delete(sink, key)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(40)))
        assert len(list(sink.list(run_id))) == (20 if self.deletes else 40)

    def test_clause_07_streams_of_several_objects_at_once(self, sink: ArtifactSink, run_id: str) -> None:
        sources = {ArtifactKey(run_id, f"{seed}"): GeneratedSource(500_000, seed=seed) for seed in range(3)}
        for key, source in sources.items():
            sink.put(key, source)
        streams = {key: sink.open(key) for key in sources}
        parts: dict[ArtifactKey, bytes] = dict.fromkeys(sources, b"")
        for _ in range(60):
            for key, stream in streams.items():
                parts[key] += stream.read(10_000)
        for key, stream in streams.items():
            stream.close()
            assert parts[key] == sources[key].read()

    def test_clause_07_a_pickled_sink_reaches_the_same_store(self, sink: ArtifactSink, key: ArtifactKey) -> None:
        sink.put(key, MemorySource(b"before"))  # connections are open by now
        copy: ArtifactSink = pickle.loads(pickle.dumps(sink))
        assert copy.uri == sink.uri
        assert _read(copy, key) == b"before"
        copy.put(key, MemorySource(b"after"))
        assert _read(sink, key) == b"after"

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_clause_07_a_forked_child_uses_the_sink(self, sink: ArtifactSink, run_id: str, key: ArtifactKey) -> None:
        sink.put(key, MemorySource(b"parent"))  # connections are open by now
        theirs = ArtifactKey(run_id, "child/object")
        receiver, sender = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(
            target=_child, args=(sink, key, theirs, sender), daemon=True
        )
        with warnings.catch_warnings():
            # Python warns of forking beside threads: that it works all the same is what is tested.
            warnings.simplefilter("ignore", DeprecationWarning)
            child.start()
        sender.close()
        try:
            assert receiver.poll(60), "the child hangs"
            assert receiver.recv() == (b"parent", b"child")
        finally:
            child.kill()
            child.join()
            child.close()
            receiver.close()
        assert _read(sink, key) == b"parent"
        if self.shared_between_processes:
            assert _read(sink, theirs) == b"child"

    # -- 8: memory -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("sized", [True, False], ids=["known size", "unknown size"])
    def test_clause_08_a_large_object_in_bounded_memory(
        self, sink: ArtifactSink, key: ArtifactKey, sized: bool
    ) -> None:
        source = GeneratedSource(self.large_bytes, sized=sized)
        sink.put(key, MemorySource(b"x"))  # so that what it imports and connects is there
        _read(sink, key)
        with PeakMemory() as putting:
            assert sink.put(key, source).size == self.large_bytes
        digest = hashlib.sha256()
        with PeakMemory() as reading, sink.open(key) as stream:
            while data := stream.read(1 << 20):
                digest.update(data)
        assert digest.hexdigest() == source.digest()
        assert max(putting.peak, reading.peak) <= self.memory_bytes

    # -- 9: names ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("path", NAMES.values(), ids=NAMES.keys())
    def test_clause_09_names(self, sink: ArtifactSink, run_id: str, path: str) -> None:
        key = ArtifactKey(run_id, path)
        stored = sink.put(key, MemorySource(path.encode()))
        assert stored.key == key
        assert _same(sink.stat(key), stored)
        assert _read(sink, key) == path.encode()
        folder = path.partition("/")[0]
        for prefix in ("", path, folder):
            assert [found.key for found in sink.list(run_id, prefix)] == [key], f"prefix {prefix!r}"
        if self._delete(sink, key):
            assert sink.stat(key) is None
            assert list(sink.list(run_id)) == []

    def test_clause_09_names_that_look_alike_are_apart(self, sink: ArtifactSink, run_id: str) -> None:
        paths = ["a b", "a+b", "a%20b", "a%2520b", "a_b", "a?b", "a#b", "a&b", "a*b", "a[b]", "a b "]
        for path in paths:
            sink.put(ArtifactKey(run_id, path), MemorySource(path.encode()))
        for path in paths:
            assert _read(sink, ArtifactKey(run_id, path)) == path.encode()
        assert sorted(stored.key.path for stored in sink.list(run_id)) == sorted(paths)
        if self._delete(sink, ArtifactKey(run_id, "a*b")):
            assert len(list(sink.list(run_id))) == len(paths) - 1

    def test_clause_09_an_object_without_bytes(self, sink: ArtifactSink, run_id: str, key: ArtifactKey) -> None:
        assert sink.put(key, MemorySource(b"")).size == 0
        assert _read(sink, key) == b""
        assert [stored.size for stored in sink.list(run_id)] == [0]

    # -- 10: counting --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("sized", [True, False], ids=["known size", "unknown size"])
    @pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, (8 << 20) + 17])
    def test_clause_10_on_bytes_counts_what_was_put(
        self, sink: ArtifactSink, key: ArtifactKey, size: int, sized: bool
    ) -> None:
        counted: list[int] = []
        source: Source = GeneratedSource(size, sized=sized)
        sink.put(key, source, on_bytes=counted.append)
        assert sum(counted) == size
        assert all(isinstance(count, int) for count in counted)


def _same(found: StoredArtifact | None, told: StoredArtifact) -> bool:
    """Tell whether ``stat`` says what was told of an object before; it may know more digests."""
    if found is None:
        return False
    same = (found.key, found.uri, found.size) == (told.key, told.uri, told.size)
    return same and told.digests.items() <= found.digests.items()


def _read(sink: ArtifactSink, key: ArtifactKey) -> bytes:
    with sink.open(key) as stream:
        return stream.read()


def _patiently(call: Callable[[], T]) -> T:
    """Do what the engine does when many use one key and the store answers that it is busy."""
    for _ in range(20):
        with suppress(TransientSinkError):
            return call()
    return call()


def _read_or_none(sink: ArtifactSink, key: ArtifactKey) -> bytes | None:
    try:
        return _read(sink, key)
    except (ArtifactNotFound, TransientSinkError):  # not there yet, or replaced while it was read
        return None


def _child(sink: ArtifactSink, theirs: ArtifactKey, ours: ArtifactKey, sender: Connection) -> None:
    sink.put(ours, MemorySource(b"child"))
    sender.send((_read(sink, theirs), _read(sink, ours)))
