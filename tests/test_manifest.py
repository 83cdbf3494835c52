"""The manifest: what is written is read back, and what others wrote is distrusted."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagesink.artifacts import ArtifactKey
from stagesink.errors import InvalidKey, ManifestError
from stagesink.manifest import FORMAT, Manifest, ManifestEntry, is_manifest_path, manifest_key

SHA = "ab" * 32


def document(**changes: Any) -> dict[str, Any]:
    """A good manifest as JSON values, with changes."""
    files = changes.pop("files", [{"path": "a.bin", "size": 3, "sha256": SHA}])
    whole: dict[str, Any] = {
        "format": FORMAT,
        "run_id": "run",
        "path": "tree",
        "kind": "tree",
        "file_count": len(files),
        "total_size": sum(f["size"] for f in files if isinstance(f, dict) and isinstance(f.get("size"), int)),
        "files": files,
        "skipped": [],
        "provenance": {},
    }
    return {**whole, **changes}


def read(**changes: Any) -> Manifest:
    return Manifest.from_bytes(json.dumps(document(**changes)).encode())


def entry(**changes: Any) -> dict[str, Any]:
    return {"path": "a.bin", "size": 3, "sha256": SHA, **changes}


def test_a_good_manifest_is_read() -> None:
    assert read() == Manifest("run", "tree", "tree", (ManifestEntry("a.bin", 3, SHA),))


_names = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\\/"), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))
_paths = st.lists(_names, min_size=1, max_size=3).map("/".join)
_entries = st.builds(
    ManifestEntry, _paths, st.integers(0, 1 << 50), st.binary(min_size=32, max_size=32).map(lambda digest: digest.hex())
)
_files = st.lists(_entries, max_size=5, unique_by=lambda found: found.path).map(tuple)
_texts = st.text(st.characters(blacklist_categories=("Cs",)), max_size=20)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    kind = draw(st.sampled_from(["file", "tree", "archive"]))
    files = draw(_files if kind != "file" else st.tuples(_entries))
    return Manifest(
        draw(_names),
        draw(_paths),
        kind,
        files,
        draw(_entries) if kind == "archive" else None,
        draw(st.lists(_texts, max_size=3).map(tuple)),
        draw(st.dictionaries(st.sampled_from(["trial_number", "archive_format", "note"]), _json, max_size=3)),
        draw(st.dictionaries(_texts, _texts, max_size=3)),
    )


@given(manifests())
def test_what_is_written_is_read_back(manifest: Manifest) -> None:
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_a_typed_error(data: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_bytes(data)


@given(_json, st.sampled_from([*document(), "archive"]))
def test_any_value_in_any_field_is_a_manifest_or_a_typed_error(value: Any, name: str) -> None:
    damaged = json.dumps({**document(), name: value}).encode()
    try:
        manifest = Manifest.from_bytes(damaged)
    except ManifestError:
        return
    # What was accepted has a place of its own, and names nothing outside it.
    assert manifest.key.path.endswith("manifest.json")
    assert all(found.path.startswith(f"{manifest.path}/") for found in manifest.objects())


@pytest.mark.parametrize(
    "path", ["../a", "a/../../b", "..", "/etc/passwd", "a//b", "", ".", "a\\b", "a\x00b", "a\nb", "x" * 300, 5, None]
)
def test_a_name_that_leaves_the_tree_is_refused(path: Any) -> None:
    with pytest.raises(ManifestError):
        read(files=[entry(path=path)])


@pytest.mark.parametrize("field", ["run_id", "path"])
@pytest.mark.parametrize("value", ["..", "../x", "/x", "", "a\\b", "a\x00", 7, None, ["a"]])
@pytest.mark.parametrize("files", [[entry()], []], ids=["with files", "without files"])
def test_an_upload_that_would_lie_outside_its_run_is_refused(field: str, value: Any, files: list[Any]) -> None:
    with pytest.raises(ManifestError):
        read(**{field: value, "files": files})


def test_an_upload_whose_manifest_has_no_valid_name_is_refused() -> None:
    with pytest.raises(ManifestError):
        read(path="x" * 250, files=[])


@pytest.mark.parametrize("size", [-1, 1 << 63, 1.5, float("nan"), float("inf"), True, "3", None])
def test_an_impossible_size_is_refused(size: Any) -> None:
    with pytest.raises(ManifestError):
        read(files=[entry(size=size)], total_size=size)


@pytest.mark.parametrize("sha256", ["", "ab", "zz" * 32, "ab" * 33, " ".join(["ab"] * 32), 5, None])
def test_an_impossible_digest_is_refused(sha256: Any) -> None:
    with pytest.raises(ManifestError):
        read(files=[entry(sha256=sha256)])


def test_a_digest_in_capitals_is_the_same_digest() -> None:
    assert read(files=[entry(sha256=SHA.upper())]).files[0].sha256 == SHA


def test_a_file_named_twice_is_refused() -> None:
    with pytest.raises(ManifestError, match="twice"):
        read(files=[entry(), entry()])


@pytest.mark.parametrize(
    "totals", [{"file_count": 2}, {"total_size": 4}, {"total_size": float("nan")}, {"file_count": None}]
)
def test_wrong_totals_are_refused(totals: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="totals"):
        read(**totals)


@pytest.mark.parametrize("kind", ["folder", None, 3, ["tree"], {}])
def test_an_unknown_kind_is_refused(kind: Any) -> None:
    with pytest.raises(ManifestError):
        read(kind=kind)


@pytest.mark.parametrize("files", [[], [entry(), entry(path="b")]])
def test_a_manifest_of_one_file_names_one(files: list[Any]) -> None:
    with pytest.raises(ManifestError):
        read(kind="file", files=files)


@pytest.mark.parametrize("name", ["run_id", "path", "kind", "files", "file_count", "total_size"])
def test_a_missing_field_is_refused(name: str) -> None:
    whole = document()
    del whole[name]
    with pytest.raises(ManifestError):
        Manifest.from_bytes(json.dumps(whole).encode())


def test_an_archive_without_its_own_entry_is_refused() -> None:
    with pytest.raises(ManifestError):
        read(kind="archive")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe\xff",
        b'"stagesink.manifest/1"',
        b'{"format": "somebody else/1", "files": []}',
        b'{"format": ["stagesink.manifest/1"]}',
    ],
)
def test_what_is_no_manifest_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_bytes(data)


@pytest.mark.parametrize("deep", [b"[" * 200_000, b'{"format":' * 200_000])
def test_deep_nesting_is_refused_and_does_not_crash(deep: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_bytes(deep)


def test_a_number_of_a_million_digits_is_refused() -> None:
    huge = json.dumps(document()).replace('"size": 3', '"size": ' + "9" * 1_000_000)
    with pytest.raises(ManifestError):
        Manifest.from_bytes(huge.encode())


@pytest.mark.parametrize("field", ["run_id", "path", "kind", "skipped", "provenance", "files"])
def test_the_message_about_a_huge_value_is_short(field: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read(**{field: ["x" * 100_000], "file_count": 1, "total_size": 0})
    assert len(str(caught.value)) < 1000


def test_every_refusal_says_what_to_do() -> None:
    for damaged in (b"", b"{}", json.dumps(document(kind="x")).encode()):
        with pytest.raises(ManifestError) as caught:
            Manifest.from_bytes(damaged)
        assert caught.value.hint


def test_unknown_fields_are_kept_as_details() -> None:
    assert read(trial_number=3).details == {"trial_number": 3}


@pytest.mark.parametrize("name", ["format", "run_id", "path", "kind", "files", "file_count", "total_size"])
def test_details_cannot_overrule_what_the_manifest_says(name: str) -> None:
    manifest = read()
    lying = Manifest(
        manifest.run_id, manifest.path, manifest.kind, manifest.files, details={name: "something else", "x": 1}
    )
    again = Manifest.from_bytes(lying.to_bytes())
    assert (again.run_id, again.path, again.kind, again.files, again.details) == (
        "run",
        "tree",
        "tree",
        manifest.files,
        {"x": 1},
    )


def test_a_stored_manifest_has_one_line_per_file() -> None:
    files = tuple(ManifestEntry(f"{n}.bin", n, SHA) for n in range(3))
    lines = Manifest("run", "tree", "tree", files).to_bytes().decode().splitlines()
    assert [line.count("sha256") for line in lines if "sha256" in line] == [1, 1, 1]


@pytest.mark.parametrize(
    ("path", "kind", "expected"),
    [
        ("checkpoint", "tree", "checkpoint.manifest.json"),
        ("metrics.json", "file", "metrics.json.manifest.json"),
        ("best_trial_checkpoint.tar.gz", "archive", "best_trial_checkpoint_manifest.json"),
        ("a/best.tar.zst", "archive", "a/best.tar.zst.manifest.json"),
        ("best.tgz", "archive", "best.tgz.manifest.json"),
        ("model.zip", "archive", "model.zip.manifest.json"),
        ("kept.tar.gz", "file", "kept.tar.gz.manifest.json"),
    ],
)
def test_a_manifest_lies_beside_what_it_describes(path: str, kind: Any, expected: str) -> None:
    key = manifest_key("run", path, kind)
    assert key == ArtifactKey("run", expected)
    assert is_manifest_path(key.path)
    assert not key.path.startswith(f"{path}/")


def test_a_name_without_room_for_its_manifest_is_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidKey, match="shorter"):
        manifest_key("run", "x" * 250, "file")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["files"].append({"path": "b", "size": 0, "sha256": SHA}),
        lambda m: m["files"][0].update(size=4),
        lambda m: m["files"][0].update(sha256="cd" * 32),
        lambda m: m["files"][0].update(path="b"),
    ],
)
def test_other_bytes_or_names_are_other_content(change: Callable[[dict[str, Any]], None]) -> None:
    other = copy.deepcopy(document())
    change(other)
    other.update(file_count=len(other["files"]), total_size=sum(f["size"] for f in other["files"]))
    assert not read().same_content(Manifest.from_bytes(json.dumps(other).encode()))


def test_the_order_of_files_and_the_time_of_upload_are_no_content() -> None:
    files = [entry(), entry(path="b")]
    assert read(files=files, provenance={"uploaded_at": "1"}).same_content(read(files=files[::-1]))
