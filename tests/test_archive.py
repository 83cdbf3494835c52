"""Checkpoint archives: the same bytes each time, whole or not at all, and nothing that reaches out of the target."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagesink.archive import ArchiveFormat, ArchiveSource, create_checkpoint_archive, extract_checkpoint_archive
from stagesink.archive.formats import write_all
from stagesink.artifacts import ArtifactKey, MemorySource, Source
from stagesink.errors import (
    ArchiveError,
    EmptyTree,
    InvalidKey,
    ManifestError,
    MissingExtra,
    RestoreError,
    SourceChanged,
    SourceKindError,
    SourceNotFound,
    StagesinkError,
    UnsafeArchive,
    VerificationError,
)
from stagesink.sinks.local import LocalSink
from stagesink.tree import INCOMPLETE_MARKER, Tree, TreeFile, scan_tree, should_skip_file

try:
    import zstandard
except ImportError:  # the core environment has no extras
    zstandard = None  # type: ignore[assignment]
needs_zstd = pytest.mark.skipif(zstandard is None, reason="zstandard (extra fast) is not installed")

FORMATS: tuple[ArchiveFormat, ...] = get_args(ArchiveFormat)
TOP = "best_trial_checkpoint"

Files = dict[str, bytes]

ZST = pytest.param("tar.zst", marks=needs_zstd)
each_format = pytest.mark.parametrize("archive_format", ["tar.gz", ZST])


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


CHECKPOINT: Files = {
    "config.json": b'{"hidden_size": 8}' * 40,
    "empty.txt": b"",
    "logs/train.log": b"epoch 1 loss 0.5\n" * 5000,
    "model.safetensors": noise(3 << 20) + bytes(2 << 20),
    "shards/part 1 %#+.bin": noise(512),
    "shards/größe-模型-🤖.bin": noise(513, 1),
    "n" * 255: b"a name of 255 bytes",
    "/".join(["long" * 20] * 5) + "/weights.bin": noise(70_000, 2),
}


def lay_out(folder: Path, files: Files = CHECKPOINT) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return folder


def contents(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


def read(source: Source, size: int = 1 << 20) -> bytes:
    with source.open() as stream:
        return b"".join(iter(lambda: stream.read(size), b""))


def untar(data: bytes) -> Files:
    """Read with readers that are not ours."""
    plain = (
        gzip.decompress(data)
        if data[:2] == b"\x1f\x8b"
        else zstandard.ZstdDecompressor().decompressobj().decompress(data)
    )
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "checkpoint")


@pytest.fixture(params=["isal", "zlib"])
def gzip_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both libraries that may write and read .gz; the fast one is hidden for the other's turn."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    else:
        pytest.importorskip("isal", reason="isal is not installed")
    return str(request.param)


# -- out: what is in it ------------------------------------------------------------------------------------------------


@each_format
def test_every_file_lies_under_the_top_folder_for_a_reader_that_is_not_ours(
    checkpoint: Path, archive_format: ArchiveFormat
) -> None:
    assert untar(read(ArchiveSource(checkpoint, archive_format))) == {f"{TOP}/{k}": v for k, v in CHECKPOINT.items()}


@each_format
def test_the_system_tar_unpacks_it(checkpoint: Path, tmp_path: Path, archive_format: ArchiveFormat) -> None:
    tool = {"tar.gz": "gzip", "tar.zst": "zstd"}[archive_format]
    if shutil.which(tool) is None or shutil.which("tar") is None:
        pytest.skip(f"no tar and {tool} on this machine")
    archive, _ = create_checkpoint_archive(checkpoint, 1, tmp_path / f"a.{archive_format}")
    subprocess.run([tool, "-tq", archive], check=True)
    plain = subprocess.run([tool, "-dqc", archive], check=True, capture_output=True).stdout
    (tmp_path / "out").mkdir()
    done = subprocess.run(["tar", "-xf", "-", "-C", tmp_path / "out"], input=plain, check=True, capture_output=True)
    assert done.stderr == b""
    assert contents(tmp_path / "out" / TOP) == CHECKPOINT


def test_both_gzip_libraries_write_the_same_members(checkpoint: Path, gzip_library: str) -> None:
    data = read(ArchiveSource(checkpoint))
    assert untar(data) == {f"{TOP}/{k}": v for k, v in CHECKPOINT.items()}
    assert data[3:8] == bytes(5), "no file name and no time in the gzip header"


@needs_zstd
def test_both_formats_hold_the_same_tar(checkpoint: Path) -> None:
    gz, zst = (read(ArchiveSource(checkpoint, archive_format)) for archive_format in FORMATS)
    assert gzip.decompress(gz) == zstandard.ZstdDecompressor().decompressobj().decompress(zst)


def test_members_carry_time_and_execute_bit_and_no_owner(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "c", {"run.sh": b"#!", "weights": b"w"})
    (folder / "run.sh").chmod(0o4710)
    (folder / "weights").chmod(0o600)
    os.utime(folder / "weights", ns=(0, 1_600_000_000_999_999_999))
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(read(ArchiveSource(folder))))) as tar:
        members = {member.name: member for member in tar}
    run, weights = members[f"{TOP}/run.sh"], members[f"{TOP}/weights"]
    assert (run.mode, weights.mode) == (0o755, 0o644)
    assert (weights.mtime, weights.pax_headers) == (1_600_000_000, {})
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members.values()} == {(0, 0, "", "")}


def test_only_a_name_that_needs_it_gets_a_pax_header(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "c", {"plain": b"", "é": b"", "l" * 150: b""})
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(read(ArchiveSource(folder))))) as tar:
        assert {member.name.removeprefix(f"{TOP}/"): set(member.pax_headers) for member in tar} == {
            "plain": set(),
            "é": {"path"},
            "l" * 150: {"path"},
        }


def test_a_hugging_face_cache_snapshot_is_archived_with_its_weights(tmp_path: Path) -> None:
    lay_out(tmp_path / "blobs", {"3f2a": b"weights"})
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "model.safetensors").symlink_to("../blobs/3f2a")
    assert untar(read(ArchiveSource(tmp_path / "snapshots"))) == {f"{TOP}/model.safetensors": b"weights"}


def test_another_top_folder_or_none(checkpoint: Path) -> None:
    assert untar(read(ArchiveSource(checkpoint, prefix="checkpoint"))).keys() == {f"checkpoint/{k}" for k in CHECKPOINT}
    assert untar(read(ArchiveSource(checkpoint, prefix=""))) == CHECKPOINT


# -- out: the same bytes -----------------------------------------------------------------------------------------------


@each_format
def test_the_same_files_give_the_same_bytes_whatever_order_umask_and_folder_they_were_made_in(
    tmp_path: Path, archive_format: ArchiveFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = lay_out(tmp_path / "one")
    before = os.umask(0o077)
    try:
        two = lay_out(tmp_path / "elsewhere" / "two", dict(reversed(CHECKPOINT.items())))
    finally:
        os.umask(before)
    first = read(ArchiveSource(one, archive_format))
    monkeypatch.chdir(two.parent)
    assert read(ArchiveSource("two", archive_format), 777) == first


@each_format
def test_another_process_makes_the_same_bytes(checkpoint: Path, tmp_path: Path, archive_format: ArchiveFormat) -> None:
    other = tmp_path / f"other.{archive_format}"
    code = "import sys; from stagesink.archive import *; create_checkpoint_archive(sys.argv[1], 1, sys.argv[2])"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", code, checkpoint, other], check=True, env=environment)
    assert other.read_bytes() == read(ArchiveSource(checkpoint, archive_format))


def test_a_changed_time_changes_the_bytes_and_the_fingerprint(checkpoint: Path) -> None:
    source = ArchiveSource(checkpoint)
    before = read(source), source.fingerprint()
    assert (read(source), source.fingerprint()) == before
    os.utime(checkpoint / "config.json", (1, 1))
    assert read(source) != before[0]
    assert source.fingerprint() != before[1]


# -- out: the source ---------------------------------------------------------------------------------------------------


@needs_zstd
def test_it_is_a_source_of_unknown_size_that_pickles(checkpoint: Path) -> None:
    source = ArchiveSource(checkpoint, "tar.zst", 3)
    assert isinstance(source, Source)
    assert source.size is None
    assert read(pickle.loads(pickle.dumps(source))) == read(source)


@each_format
def test_contents_are_hashed_while_the_bytes_pass(checkpoint: Path, archive_format: ArchiveFormat) -> None:
    source = ArchiveSource(scan_tree(checkpoint), archive_format)
    with pytest.raises(ArchiveError, match="not made yet"):
        _ = source.contents
    with source.open() as stream:
        stream.read(1 << 20)
    with pytest.raises(ArchiveError, match="not made yet"):
        _ = source.contents
    read(source)
    assert source.contents == tuple((k, len(v), hashlib.sha256(v).hexdigest()) for k, v in sorted(CHECKPOINT.items()))


@pytest.mark.parametrize("size", [1, 1000, 1 << 20, -1], ids=["1", "1000", "1 MiB", "all"])
def test_reads_of_any_size_give_the_same_bytes(tmp_path: Path, size: int) -> None:
    source = ArchiveSource(lay_out(tmp_path / "c", {"a": noise(5000), "b": b""}))
    whole = read(source)
    with source.open() as stream:
        assert b"".join(iter(lambda: stream.read(size), b"")) == whole


def test_a_read_gives_as_much_as_was_asked_for_until_the_end(checkpoint: Path) -> None:
    with ArchiveSource(checkpoint).open() as stream:
        sizes = [len(chunk) for chunk in iter(lambda: stream.read(100_000), b"")]
    assert set(sizes[:-1]) == {100_000}


def test_a_closed_stream_is_closed(checkpoint: Path) -> None:
    stream = ArchiveSource(checkpoint).open()
    stream.read(10)
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.read(10)


class Meddler:
    """Opens an archive, lets something happen to its second file while the first is read, and reads on."""

    def __init__(self, folder: Path) -> None:
        self.folder = lay_out(folder, {"a.bin": noise(4 << 20), "b.bin": noise(4 << 20, 1), "c.bin": b""})
        self.victim = self.folder / "b.bin"

    def read_on_after(self, happening: Callable[[Path], object], reached: int = 5 << 20) -> None:
        source = ArchiveSource(self.folder)
        with source.open() as stream:
            stream.read(reached)
            happening(self.victim)
            try:
                while stream.read(1 << 20):
                    pass
            finally:
                with pytest.raises(StagesinkError):  # the failure does not turn into an end when asked again
                    stream.read(1)
                with pytest.raises(ArchiveError):
                    _ = source.contents


@pytest.fixture
def meddler(tmp_path: Path) -> Meddler:
    return Meddler(tmp_path / "c")


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replace(path: Path) -> None:
    status = path.stat()
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize(
    "happening",
    [grow, lambda path: os.truncate(path, 100), lambda path: os.utime(path, (5, 5)), replace],
    ids=["grows", "shrinks", "is written in place", "is replaced"],
)
def test_a_file_that_changes_while_it_is_read_is_noticed(meddler: Meddler, happening: Callable[[Path], object]) -> None:
    with pytest.raises(SourceChanged, match=r"b\.bin changed"):
        meddler.read_on_after(happening)


@pytest.mark.parametrize("reached", [1 << 20, 5 << 20], ids=["before its turn", "in the middle of it"])
def test_a_file_that_vanishes_while_the_archive_is_made(meddler: Meddler, reached: int) -> None:
    with pytest.raises(SourceNotFound, match=r"b\.bin"):
        meddler.read_on_after(Path.unlink, reached)


def test_a_file_that_becomes_a_folder(meddler: Meddler) -> None:
    def swap(path: Path) -> None:
        path.unlink()
        path.mkdir()

    with pytest.raises(SourceKindError, match=r"b\.bin"):
        meddler.read_on_after(swap, 1 << 20)


@pytest.mark.parametrize(("archive_format", "level"), [("tar.gz", 0), ("tar.gz", 10), ("tar.zst", 20), ("tar.zst", -1)])
def test_a_level_that_does_not_exist(checkpoint: Path, archive_format: ArchiveFormat, level: int) -> None:
    with pytest.raises(ArchiveError, match=f"no level {level}"):
        ArchiveSource(checkpoint, archive_format, level)


@pytest.mark.parametrize(
    ("archive_format", "level"),
    [
        ("tar.gz", 1),
        ("tar.gz", 9),
        pytest.param("tar.zst", 1, marks=needs_zstd),
        pytest.param("tar.zst", 19, marks=needs_zstd),
    ],
)
def test_every_level_holds_the_same(
    tmp_path: Path, gzip_library: str, archive_format: ArchiveFormat, level: int
) -> None:
    source = ArchiveSource(lay_out(tmp_path / "c", {"a": b"text " * 9999}), archive_format, level)
    assert untar(read(source)) == {f"{TOP}/a": b"text " * 9999}


def test_an_unknown_format(checkpoint: Path) -> None:
    with pytest.raises(ArchiveError, match=r"tar\.rar.*Use tar\.gz or tar\.zst"):
        ArchiveSource(checkpoint, "tar.rar")  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["../up", "/abs", "a\\b", "a/"])
def test_a_top_folder_that_leads_elsewhere(checkpoint: Path, prefix: str) -> None:
    with pytest.raises(InvalidKey):
        ArchiveSource(checkpoint, prefix=prefix)


@needs_zstd
def test_zst_without_its_package_names_the_extra(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, _ = create_checkpoint_archive(checkpoint, 1, tmp_path / "a.tar.zst")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtra, match=r"stagesink\[fast\]"):
        ArchiveSource(checkpoint, "tar.zst")
    with pytest.raises(MissingExtra, match=r"stagesink\[fast\]"):
        extract_checkpoint_archive(archive, tmp_path / "out")


def test_neither_library_is_imported_before_it_is_used() -> None:
    code = "import sys, stagesink.archive; sys.exit(bool({'isal', 'zstandard'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


@each_format
def test_memory_stays_bounded_at_any_size(tmp_path: Path, archive_format: ArchiveFormat) -> None:
    with (tmp_path / "big.bin").open("wb") as file:
        file.truncate(192 << 20)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "big.bin").symlink_to(tmp_path / "big.bin")
    tracemalloc.start()
    try:
        archive, manifest = create_checkpoint_archive(tmp_path / "c", 1, tmp_path / f"a.{archive_format}")
        out = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        extract_checkpoint_archive(archive, tmp_path / "out", manifest=manifest)
        back = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert out < 16 << 20
    # These 192 MiB are a bomb of a few KiB: a piece of zstd may open to 32 MiB (twice, while it is put together).
    assert back < (80 << 20 if archive_format == "tar.zst" else 24 << 20)


# -- out: the file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", pytest.param("a.tar.zst", marks=needs_zstd), "A.TAR.GZ"])
def test_the_manifest_describes_the_archive_and_every_file(checkpoint: Path, tmp_path: Path, name: str) -> None:
    (checkpoint / "x.lock").touch()
    path, manifest = create_checkpoint_archive(checkpoint, 7, tmp_path / name)
    data = path.read_bytes()
    assert path == tmp_path / name
    assert manifest.pop("created_at").endswith("+00:00")
    assert manifest == {
        "trial_number": 7,
        "archive_format": "tar.zst" if "zst" in name else "tar.gz",
        "extracted_path": TOP,
        "file_count": len(CHECKPOINT),
        "total_size": sum(map(len, CHECKPOINT.values())),
        "files": [
            {"path": k, "size": len(v), "sha256": hashlib.sha256(v).hexdigest()} for k, v in sorted(CHECKPOINT.items())
        ],
        "skipped": ["x.lock"],
        "archive": {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()},
    }
    assert json.loads(json.dumps(manifest)) == manifest


def test_without_an_output_it_is_a_private_temporary_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path, _ = create_checkpoint_archive(checkpoint, 1)
    assert path.parent == tmp_path
    assert path.match("checkpoint_*.tar.gz")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert untar(path.read_bytes()).keys() == {f"{TOP}/{k}" for k in CHECKPOINT}


def test_an_existing_archive_is_replaced_and_nothing_else_left(checkpoint: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "a.tar.gz").write_bytes(b"old")
    create_checkpoint_archive(checkpoint, 1, home / "a.tar.gz")
    assert [path.name for path in home.iterdir()] == ["a.tar.gz"]
    assert untar((home / "a.tar.gz").read_bytes())


def test_the_file_sink_leaves_alone_an_archive_that_is_being_made(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "run").mkdir(parents=True)

    def put_and_write(file: io.RawIOBase, data: bytes) -> None:
        LocalSink(home).put(ArtifactKey("run", "other"), MemorySource(b"theirs"))
        write_all(file, data)

    monkeypatch.setattr("stagesink.archive.pack.write_all", put_and_write)
    create_checkpoint_archive(checkpoint, 1, home / "run/a.tar.gz")
    assert {path.name for path in (home / "run").iterdir()} == {"a.tar.gz", "other"}
    assert untar((home / "run/a.tar.gz").read_bytes())


def test_a_failure_keeps_the_old_archive_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, home = lay_out(tmp_path / "c", {"a": noise(2 << 20), "b": b"x"}), tmp_path / "home"
    home.mkdir()
    (home / "a.tar.gz").write_bytes(b"old")
    tree = scan_tree(folder)
    (folder / "b").unlink()
    monkeypatch.setattr("stagesink.archive.pack.scan_tree", lambda _: tree)  # it vanished right after the scan
    with pytest.raises(SourceNotFound):
        create_checkpoint_archive(folder, 1, home / "a.tar.gz")
    assert contents(home) == {"a.tar.gz": b"old"}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a", "tar.gz.part"])
def test_a_name_without_a_known_suffix(checkpoint: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match=r"\.tar\.gz, \.tgz, \.tar\.zst"):
        create_checkpoint_archive(checkpoint, 1, tmp_path / name)


def test_an_output_inside_the_folder_is_refused_also_through_a_link(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(checkpoint / "logs")
    for output in (checkpoint / "a.tar.gz", tmp_path / "link" / "a.tar.gz"):
        with pytest.raises(ArchiveError, match="inside the folder"):
            create_checkpoint_archive(checkpoint, 1, output)
    assert contents(checkpoint) == CHECKPOINT


def test_an_output_that_is_a_folder_or_in_none(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "d.tar.gz").mkdir()
    with pytest.raises(ArchiveError, match="is a folder"):
        create_checkpoint_archive(checkpoint, 1, tmp_path / "d.tar.gz")
    with pytest.raises(ArchiveError, match="does not exist"):
        create_checkpoint_archive(checkpoint, 1, tmp_path / "nowhere" / "a.tar.gz")


def test_a_tree_without_a_file_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(EmptyTree):
        ArchiveSource(Tree(tmp_path, ()))


def test_an_empty_checkpoint_makes_no_archive(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(EmptyTree):
        create_checkpoint_archive(tmp_path / "c", 1, tmp_path / "a.tar.gz")
    assert not (tmp_path / "a.tar.gz").exists()


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a disk of 2 MiB")
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount a disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_leaves_no_part_of_an_archive(checkpoint: Path, small_disk: Path) -> None:
    with pytest.raises(ArchiveError, match=r"No space left.*Free some space"):
        create_checkpoint_archive(checkpoint, 1, small_disk / "a.tar.gz")
    assert list(small_disk.iterdir()) == []


def test_a_full_disk_leaves_nothing_half_unpacked(checkpoint: Path, tmp_path: Path, small_disk: Path) -> None:
    archive, _ = create_checkpoint_archive(checkpoint, 1, tmp_path / "a.tar.gz")
    (small_disk / "config.json").write_bytes(b"mine")
    for target in (small_disk, small_disk / "new"):
        with pytest.raises(RestoreError, match=rf"^{target} cannot.*No space left.*Free some space"):
            extract_checkpoint_archive(archive, target)
        assert contents(small_disk) == {"config.json": b"mine"}
        assert [path.name for path in small_disk.iterdir()] == ["config.json"]


# -- in: the inverse ---------------------------------------------------------------------------------------------------


@each_format
def test_unpacking_gives_back_files_times_and_execute_bits(
    checkpoint: Path, tmp_path: Path, archive_format: ArchiveFormat, gzip_library: str
) -> None:
    (checkpoint / "config.json").chmod(0o755)
    archive, manifest = create_checkpoint_archive(checkpoint, 1, tmp_path / f"a.{archive_format}")
    target = tmp_path / "new" / "out"
    assert extract_checkpoint_archive(archive, target, manifest=manifest) == sorted(CHECKPOINT)
    assert contents(target) == CHECKPOINT
    for name in CHECKPOINT:
        status = (target / name).stat()
        assert status.st_mtime == 1_700_000_000
        assert bool(status.st_mode & stat.S_IXUSR) == (name == "config.json")
    assert read(ArchiveSource(target, archive_format)) == archive.read_bytes()
    assert sorted(path.name for path in target.parent.iterdir()) == ["out"]


def is_kept(name: str) -> bool:
    return name not in (".", "..", INCOMPLETE_MARKER) and not should_skip_file(name, name)


segment = st.text(
    st.characters(min_codepoint=32, exclude_characters="\\/\x7f", exclude_categories=["Cs", "Cc"]),
    min_size=1,
    max_size=60,
).filter(is_kept)
trees = st.dictionaries(
    st.lists(segment, min_size=1, max_size=3).map(tuple), st.binary(max_size=3000), min_size=1, max_size=6
)


@given(files=trees, archive_format=st.sampled_from(FORMATS if zstandard else FORMATS[:1]))
def test_create_then_unpack_is_an_identity(files: dict[tuple[str, ...], bytes], archive_format: ArchiveFormat) -> None:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for parts, data in files.items():
            path = home.joinpath("in", *parts)
            if any((home.joinpath("in", *parts[:depth])).is_file() for depth in range(1, len(parts))) or path.is_dir():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        archive, manifest = create_checkpoint_archive(home / "in", 1, home / f"a.{archive_format}")
        written = extract_checkpoint_archive(archive, home / "out", manifest=manifest)
        assert contents(home / "out") == contents(home / "in")
        assert written == sorted(contents(home / "in"))


def test_a_checkpoint_with_a_folder_named_like_the_top_folder_keeps_it(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "c", {f"{TOP}/model.bin": b"x"})
    archive, _ = create_checkpoint_archive(folder, 1, tmp_path / "a.tar.gz")
    assert extract_checkpoint_archive(archive, tmp_path / "out") == [f"{TOP}/model.bin"]
    assert contents(tmp_path / "out") == {f"{TOP}/model.bin": b"x"}


def test_the_manifest_says_which_top_folder_is_taken_off(checkpoint: Path, tmp_path: Path) -> None:
    source = ArchiveSource(checkpoint, prefix="mine")
    (tmp_path / "a").write_bytes(read(source))
    manifest = {"extracted_path": "mine", "files": [file._asdict() for file in source.contents]}
    extract_checkpoint_archive(tmp_path / "a", tmp_path / "out", manifest=manifest)
    extract_checkpoint_archive(tmp_path / "a", tmp_path / "out2", prefix="mine")
    extract_checkpoint_archive(tmp_path / "a", tmp_path / "out3")
    assert (
        contents(tmp_path / "out") == contents(tmp_path / "out2") == contents(tmp_path / "out3" / "mine") == CHECKPOINT
    )


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_an_archive_that_plain_tarfile_made_of_a_whole_folder_unpacks(
    checkpoint: Path, tmp_path: Path, gzip_library: str, kind: int
) -> None:
    (checkpoint / "left empty").mkdir()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=kind) as tar:
        tar.add(checkpoint, TOP)
    assert extract_checkpoint_archive(tmp_path / "a.tar.gz", tmp_path / "out") == sorted(CHECKPOINT)
    assert contents(tmp_path / "out") == CHECKPOINT
    assert (tmp_path / "out" / "left empty").is_dir()


def test_an_archive_of_a_dot_unpacks(checkpoint: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-czf", tmp_path / "a.tgz", "-C", checkpoint, "."], check=True)
    extract_checkpoint_archive(tmp_path / "a.tgz", tmp_path / "out")
    assert contents(tmp_path / "out") == CHECKPOINT


@each_format
def test_an_archive_written_in_several_streams_unpacks(
    checkpoint: Path, tmp_path: Path, archive_format: ArchiveFormat, gzip_library: str
) -> None:
    plain = gzip.decompress(read(ArchiveSource(checkpoint)))
    pack = gzip.compress if archive_format == "tar.gz" else zstandard.ZstdCompressor().compress
    (tmp_path / "a").write_bytes(b"".join(pack(plain[at : at + 700_001]) for at in range(0, len(plain), 700_001)))
    extract_checkpoint_archive(tmp_path / "a", tmp_path / "out")
    assert contents(tmp_path / "out") == CHECKPOINT


@needs_zstd
def test_the_name_of_the_archive_plays_no_part(checkpoint: Path, tmp_path: Path) -> None:
    archive, _ = create_checkpoint_archive(checkpoint, 1, tmp_path / "a.tar.zst")
    extract_checkpoint_archive(archive.rename(tmp_path / "a.tar.gz"), tmp_path / "out")
    assert contents(tmp_path / "out") == CHECKPOINT


def test_into_a_folder_that_exists_others_stay_and_the_same_are_replaced(checkpoint: Path, tmp_path: Path) -> None:
    archive, _ = create_checkpoint_archive(checkpoint, 1, tmp_path / "a.tar.gz")
    target = lay_out(tmp_path / "out", {"config.json": b"old", "logs/mine.log": b"mine"})
    extract_checkpoint_archive(archive, target)
    assert contents(target) == {**CHECKPOINT, "logs/mine.log": b"mine"}


# -- in: archives that mean harm ---------------------------------------------------------------------------------------


def member(name: str, data: bytes = b"evil", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    info.size = len(data) if info.isreg() else 0
    return info, data


def pack(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, data in (member(f"{TOP}/good.bin", b"good"), *members):
            tar.addfile(info, io.BytesIO(data))
    return path


def refuses(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes], match: str) -> None:
    """Unpack into a new and into an old folder: both are refused, and not a byte lands anywhere."""
    archive = pack(tmp_path / "evil.tar.gz", *members)
    old = lay_out(tmp_path / "old", {"mine": b"mine"})
    before = sorted(tmp_path.rglob("*"))
    for target in (old, tmp_path / "new"):
        with pytest.raises(UnsafeArchive, match=match):
            extract_checkpoint_archive(archive, target)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../evil", f"{TOP}/../../evil", f"{TOP}/..", "a/../b"])
def test_a_member_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    refuses(tmp_path, member(name), match="leads out")


def test_an_absolute_member_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path, member(str(tmp_path / "evil")), match="leads out")


def test_a_folder_that_climbs_out_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path, member("../evil", type=tarfile.DIRTYPE), match="leads out")


@pytest.mark.parametrize("target", ["../../outside", "/etc/passwd", "good.bin"])
def test_a_symbolic_link_is_refused_wherever_it_leads(tmp_path: Path, target: str) -> None:
    refuses(tmp_path, member(f"{TOP}/l", type=tarfile.SYMTYPE, linkname=target), match="symbolic link")


def test_a_file_written_through_a_link_of_the_same_archive_is_refused(tmp_path: Path) -> None:
    link = member(f"{TOP}/l", type=tarfile.SYMTYPE, linkname=str(tmp_path))
    refuses(tmp_path, link, member(f"{TOP}/l/evil"), match="symbolic link")


def test_a_hard_link_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path, member(f"{TOP}/h", type=tarfile.LNKTYPE, linkname="/etc/passwd"), match="hard link")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE], ids=["character", "block"])
def test_a_device_is_refused(tmp_path: Path, kind: bytes) -> None:
    refuses(tmp_path, member(f"{TOP}/d", type=kind, devmajor=1, devminor=5), match="device")


def test_a_named_pipe_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path, member(f"{TOP}/p", type=tarfile.FIFOTYPE), match="named pipe")


def test_a_member_of_an_unknown_type_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path, member(f"{TOP}/q", type=b"Q"), match="of type b'Q'")


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    sparse = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,4", "GNU.sparse.size": "99999999"}
    refuses(tmp_path, member(f"{TOP}/s", pax_headers=sparse), match="sparse")


@pytest.mark.parametrize("twin", ["good.bin", "./good.bin", "/good.bin"])
def test_a_name_that_comes_twice_is_refused(tmp_path: Path, twin: str) -> None:
    refuses(tmp_path, member(f"{TOP}/{twin}"), match="twice")


def test_a_name_that_is_both_file_and_folder_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path, member(f"{TOP}/good.bin/evil"), match="both as a file and as a folder")


def test_a_folder_named_like_a_file_before_it_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path, member(f"{TOP}/good.bin", type=tarfile.DIRTYPE), match="both as a file and as a folder")


@pytest.mark.parametrize("name", ["back\\slash", "..\\up", "line\nbreak", "\x1b[31m", "n" * 300, ""])
def test_a_name_that_no_folder_should_hold_is_refused(tmp_path: Path, name: str) -> None:
    refuses(tmp_path, member(name), match="no folder should hold")


def test_a_name_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        info, data = member("bad-\udcff")
        tar.addfile(info, io.BytesIO(data))
    with pytest.raises(UnsafeArchive):
        extract_checkpoint_archive(archive, tmp_path / "out")


def test_a_link_already_on_disk_is_not_written_through(checkpoint: Path, tmp_path: Path) -> None:
    archive, _ = create_checkpoint_archive(checkpoint, 1, tmp_path / "a.tar.gz")
    (tmp_path / "outside").mkdir()
    target = lay_out(tmp_path / "out", {"mine": b"mine"})
    (target / "logs").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafeArchive, match="through the link"):
        extract_checkpoint_archive(archive, target)
    assert list((tmp_path / "outside").iterdir()) == []
    assert sorted(path.name for path in target.iterdir()) == ["logs", "mine"]


def test_a_link_on_disk_under_a_files_own_name_is_replaced_not_followed(checkpoint: Path, tmp_path: Path) -> None:
    archive, _ = create_checkpoint_archive(checkpoint, 1, tmp_path / "a.tar.gz")
    (tmp_path / "outside").write_bytes(b"untouched")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").symlink_to(tmp_path / "outside")
    extract_checkpoint_archive(archive, tmp_path / "out")
    assert (tmp_path / "outside").read_bytes() == b"untouched"
    assert contents(tmp_path / "out") == CHECKPOINT


def test_setuid_world_writable_and_owner_are_not_taken_over(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tar.gz", member(f"{TOP}/sh", mode=0o7777, uid=4321, gid=4321, uname="nobody"))
    before = os.umask(0o022)
    try:
        extract_checkpoint_archive(archive, tmp_path / "out")
    finally:
        os.umask(before)
    status = (tmp_path / "out" / "sh").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o755, os.geteuid())
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


@pytest.mark.parametrize("mtime", ["inf", "nan", "-1e300", "1e300"])
def test_a_time_beyond_all_clocks_is_no_crash(tmp_path: Path, mtime: str) -> None:
    archive = pack(tmp_path / "a.tar.gz", member(f"{TOP}/x", b"x", pax_headers={"mtime": mtime}))
    extract_checkpoint_archive(archive, tmp_path / "out")
    assert (tmp_path / "out" / "x").stat().st_mtime == 0


def test_a_header_that_claims_gigabytes_of_text_is_not_read_into_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 8 << 30
    with (tmp_path / "a.tar.gz").open("wb") as file:
        pack = zlib.compressobj(9, zlib.DEFLATED, 31)
        file.write(pack.compress(header.tobuf(tarfile.GNU_FORMAT)))
        for _ in range(64):
            file.write(pack.compress(bytes(1 << 20)))
        file.write(pack.flush())
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match="claims"):
            extract_checkpoint_archive(tmp_path / "a.tar.gz", tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_headers_nested_without_end_are_no_crash(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2
    once = info.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(once * 5000))
    with pytest.raises(ArchiveError):
        extract_checkpoint_archive(tmp_path / "a.tar.gz", tmp_path / "out")


# -- in: damage --------------------------------------------------------------------------------------------------------


@each_format
def test_an_archive_cut_short_anywhere_is_refused(
    tmp_path: Path, archive_format: ArchiveFormat, gzip_library: str
) -> None:
    whole = read(ArchiveSource(lay_out(tmp_path / "c", {"a": noise(700), "b": b"text"}), archive_format))
    for length in [*range(0, len(whole) - 40, 23), *range(len(whole) - 40, len(whole))]:
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ArchiveError):
            extract_checkpoint_archive(tmp_path / "cut", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "cut"]


@each_format
def test_a_flipped_bit_anywhere_lets_no_wrong_byte_land(
    tmp_path: Path, archive_format: ArchiveFormat, gzip_library: str
) -> None:
    files = {"a": noise(300)}
    whole = read(ArchiveSource(lay_out(tmp_path / "c", files), archive_format))
    refused = 0
    places = [*range(0, len(whole) - 10, 7), *range(len(whole) - 10, len(whole))]
    for at in places:
        (tmp_path / "bad").write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            extract_checkpoint_archive(tmp_path / "bad", tmp_path / f"out{at}")
        except ArchiveError:
            refused += 1
        else:  # a bit that means nothing, such as the time in gzip's header
            assert contents(tmp_path / f"out{at}") == files
    assert refused > len(places) * 0.8


def test_a_tar_that_ends_without_its_end_mark_is_refused(tmp_path: Path) -> None:
    plain = gzip.decompress(read(ArchiveSource(lay_out(tmp_path / "c", {"a": b"1", "b": b"2"}))))
    for tail in (b"", b"\xff" * 512, b"garbage"):
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(plain[:1024] + tail))
        with pytest.raises(ArchiveError):
            extract_checkpoint_archive(tmp_path / "a.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@given(data=st.data())
def test_whatever_a_tar_holds_the_answer_is_files_or_a_typed_error(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=data.draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    ) as tar:
        for name in ("a", "é" * 80, "l" * 150, "d/x"):
            info, content = member(f"{TOP}/{name}", b"c" * 600)
            tar.addfile(info, io.BytesIO(content))
    plain = bytearray(buffer.getvalue()[: 12 * 512])
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(plain) - 1), st.integers(0, 255)), max_size=8)):
        plain[at] = value
        block = at - at % 512
        info_sum = sum(plain[block : block + 148]) + 256 + sum(plain[block + 156 : block + 512])
        if plain[block + 257 : block + 262] == b"ustar":  # a true checksum, so that the damage gets past it
            plain[block + 148 : block + 156] = b"%06o\0 " % info_sum
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "a").write_bytes(gzip.compress(bytes(plain) + bytes(1024)))
        try:
            written = extract_checkpoint_archive(home / "a", home / "out")
        except StagesinkError:
            assert [path.name for path in home.iterdir()] == ["a"]
        else:
            assert sorted(contents(home / "out")) == written


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 a zip", b"\x1f", bytes(2048)])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(data)
    with pytest.raises(ArchiveError, match="neither"):
        extract_checkpoint_archive(tmp_path / "a.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("names", [[], [TOP], ["a", "a/b"]], ids=["nothing", "top folder", "folders"])
def test_an_archive_without_a_file_is_refused(tmp_path: Path, names: list[str]) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name in names:
            tar.addfile(member(name, type=tarfile.DIRTYPE)[0])
    with pytest.raises(ArchiveError):
        extract_checkpoint_archive(tmp_path / "a.tar.gz", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_an_archive_that_does_not_exist_or_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"a\.tar\.gz"):
        extract_checkpoint_archive(tmp_path / "a.tar.gz", tmp_path / "out")
    with pytest.raises(SourceKindError):
        extract_checkpoint_archive(tmp_path, tmp_path / "out")


# -- in: the manifest and the target -----------------------------------------------------------------------------------


def spoil(manifest: dict[str, Any], how: str) -> None:
    files = manifest["files"]
    if how == "missing":
        files.append({"path": "more.bin", "size": 1, "sha256": "0" * 64})
    elif how == "not in the manifest":
        del files[0]
    else:
        files[0]["size" if how == "size" else "sha256"] = 99 if how == "size" else "0" * 64


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "more.bin is missing"),
        ("not in the manifest", "config.json is not in the manifest"),
        ("size", "config.json differs"),
        ("sha256", "config.json differs"),
    ],
)
def test_files_that_are_not_the_manifests_do_not_land(checkpoint: Path, tmp_path: Path, how: str, said: str) -> None:
    archive, manifest = create_checkpoint_archive(checkpoint, 1, tmp_path / "a.tar.gz")
    spoil(manifest, how)
    old = lay_out(tmp_path / "old", {"config.json": b"old"})
    for target in (tmp_path / "new", old):
        with pytest.raises(VerificationError, match=said):
            extract_checkpoint_archive(archive, target, manifest=manifest)
    assert not (tmp_path / "new").exists()
    assert contents(old) == {"config.json": b"old"}


def test_an_archive_that_is_larger_than_its_manifest_says_fills_no_disk(tmp_path: Path, small_disk: Path) -> None:
    archive = pack(tmp_path / "bomb.tar.gz", member("a", b"a"), member("b", bytes(64 << 20)))
    manifest = {"files": [{"path": "a", "size": 1, "sha256": hashlib.sha256(b"a").hexdigest()}], "extracted_path": ""}
    with pytest.raises(VerificationError, match="more than its manifest says, from b on"):
        extract_checkpoint_archive(archive, small_disk / "out", manifest=manifest)
    assert os.listdir(small_disk) == []


@pytest.mark.parametrize("manifest", [{}, {"files": 3}, {"files": ["a"]}, {"files": [{"path": "a"}]}])
def test_a_manifest_that_is_none(checkpoint: Path, tmp_path: Path, manifest: dict[str, Any]) -> None:
    archive, _ = create_checkpoint_archive(checkpoint, 1, tmp_path / "a.tar.gz")
    with pytest.raises(ManifestError):
        extract_checkpoint_archive(archive, tmp_path / "out", manifest=manifest)


def test_a_target_that_is_a_file_or_below_one(checkpoint: Path, tmp_path: Path) -> None:
    archive, _ = create_checkpoint_archive(checkpoint, 1, tmp_path / "a.tar.gz")
    (tmp_path / "file").write_bytes(b"mine")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RestoreError):
            extract_checkpoint_archive(archive, target)
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "checkpoint", "file"]


@pytest.mark.parametrize("blocker", ["config.json/x", "logs"], ids=["a folder for a file", "a file for a folder"])
def test_a_target_with_the_wrong_kind_in_the_way_keeps_all_it_had(
    checkpoint: Path, tmp_path: Path, blocker: str
) -> None:
    archive, _ = create_checkpoint_archive(checkpoint, 1, tmp_path / "a.tar.gz")
    target = lay_out(tmp_path / "out", {blocker: b"mine"})
    with pytest.raises(RestoreError, match=rf"{blocker[:4]}.* where a"):
        extract_checkpoint_archive(archive, target)
    assert contents(target) == {blocker: b"mine"}


def test_a_tree_made_by_hand_may_hold_one_file(tmp_path: Path) -> None:
    path = lay_out(tmp_path / "c", {"x": b"1", "y": b"2"}) / "x"
    tree = Tree(path.parent, (TreeFile("renamed", str(path), 1),))
    assert untar(read(ArchiveSource(tree))) == {f"{TOP}/renamed": b"1"}
