"""A store that can be taken away and comes back."""

from __future__ import annotations

from pathlib import Path


class Store:
    """A folder that a ``file:`` sink stores in; a file of its name makes every upload fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"file:{folder}"

    def take_away(self) -> None:
        self.folder.write_text("not a folder")

    def bring_back(self) -> None:
        self.folder.unlink()

    def files(self, run_id: str = "run") -> dict[str, bytes]:
        """What lies there, read without stagesink; manifests left out."""
        root = self.folder / run_id
        found = {str(each.relative_to(root)): each.read_bytes() for each in root.rglob("*") if each.is_file()}
        return {name: data for name, data in found.items() if not name.endswith("manifest.json")}
