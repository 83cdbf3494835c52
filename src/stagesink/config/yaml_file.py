"""The YAML layer. It walks nodes instead of values, because nodes know their lines."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from stagesink.config.layers import Layers, build, warn_once
from stagesink.config.model import Artifacts, SlotChange
from stagesink.config.schema import KeyPath, Leaf, WrongValue, full_schema, nearest, schema_of, suggestion
from stagesink.errors import ConfigError, StagesinkError
from stagesink.stages import DEFAULT_PRIORITY, Slot, Stage

MAX_VALUES = 20_000
"""Most values a configuration file may hold, those counted again that an alias repeats."""
MAX_DEPTH = 50
"""Deepest nesting of a configuration file."""

_SECTIONS = ("artifacts", "tracking")
_STAGES = ("artifacts", "stages")

_NULL = "tag:yaml.org,2002:null"
_TEXT = "tag:yaml.org,2002:str"


class YamlReader:
    """Reads our two sections into the layers, along the schema.

    A schema maps a key to a leaf, to the schema of a mapping, or to a function of the key's line and value node.
    """

    def __init__(self, layers: Layers, text: str) -> None:
        self._layers = layers
        self._file = layers.file
        self._text = text
        self._problems: list[tuple[int, str]] = []

    def read(self) -> None:
        """Read the file; its problems are left with the layers.

        Raises
        ------
        ConfigError
            It is not YAML, or more of it than any configuration has.
        """
        try:
            self._loader = _BoundedLoader(self._file, self._text)
            root = self._loader.get_single_node()
            if root is not None:
                self._sections(root)
        except ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            message = f"{self._file}:{line}: not valid YAML: a control character."
            raise ConfigError(message, hint="Remove it.") from None
        except yaml.MarkedYAMLError as error:
            self._not_yaml(error)
        self._layers.problems += [text for _, text in sorted(self._problems, key=lambda problem: problem[0])]

    def _sections(self, root: Node) -> None:
        if root.tag == _NULL:
            return
        if not isinstance(root, MappingNode):
            self._problem(1, (), f"expected a mapping, got {_kind(root)}")
            return
        _check_size(self._file, root)
        self._repeated(root, (), only=_SECTIONS)
        self._loader.flatten_mapping(root)
        found = {key.value: (_line(key), value) for key, value in root.value if isinstance(key, ScalarNode)}
        ours = {name: found[name] for name in _SECTIONS if name in found}
        for name, (line, _) in found.items():
            if name not in _SECTIONS and (near := nearest(name, _SECTIONS, cutoff=0.85)):
                warn_once(f"{self._file}:{line}: {name} is no section of stagesink; did you mean {near!r}?")
        seen: set[int] = set()
        for name, (_, node) in ours.items():
            self._repeated_inside(node, (name,), seen)
        broken: dict[str, Any] = {}
        if "artifacts" in ours:
            schema = {**schema_of(Artifacts), "stages": functools.partial(self._stages, broken)}
            self._mapping(*ours["artifacts"], schema, ("artifacts",))
        if "tracking" in ours:  # after the stages, which say what may stand in it
            switches = full_schema(self._layers.table)["tracking"]
            self._mapping(*ours["tracking"], {**switches, **broken}, ("tracking",))

    def _mapping(self, line: int, node: Node, schema: Mapping[str, Any], path: KeyPath) -> None:
        for key, (key_line, value) in self._pairs(line, node, path).items():
            inner = schema.get(key)
            here = (*path, key)
            if inner is None:
                self._problem(key_line, here, f"unknown key; {suggestion(key, schema)}")
            elif isinstance(inner, Leaf):
                self._leaf(key_line, value, inner, here)
            elif callable(inner):
                inner(key_line, value)
            else:
                self._mapping(key_line, value, inner, here)

    def _pairs(self, line: int, node: Node, path: KeyPath) -> dict[str, tuple[int, Node]]:
        """Return a mapping's values by key, each with its key's line. Nothing at all is an empty mapping."""
        if node.tag == _NULL:
            return {}
        if not isinstance(node, MappingNode):
            self._problem(line, path, f"expected a mapping, got {_kind(node)}")
            return {}
        self._loader.flatten_mapping(node)
        found: dict[str, tuple[int, Node]] = {}
        for key, value in node.value:
            if isinstance(key, ScalarNode) and key.tag == _TEXT:
                found[key.value] = (_line(key), value)
            else:
                shown = repr(key.value) if isinstance(key, ScalarNode) else _kind(key)
                self._problem(_line(key), path, f"the key {shown} is not text; put it in quotes or remove it")
        return found

    def _leaf(self, line: int, node: Node, leaf: Leaf, path: KeyPath) -> None:
        if leaf.is_mapping and node.tag == _NULL:
            return
        try:
            value = leaf.read(self._loader.construct_object(node, deep=True), strict=True)
        except WrongValue as wrong:
            self._problem(line, path, str(wrong))
        except (ValueError, LookupError, AttributeError, TypeError):
            # What PyYAML lets out when a value contradicts its tag: `2026-99-99`, `!!int ""`, `!!bool maybe`.
            self._problem(line, path, "holds a value that is not what its YAML type says; put it in quotes")
        else:
            self._layers.set(path, value, f"{self._file}:{line}")

    def _stages(self, broken: dict[str, Any], line: int, node: Node) -> None:
        """Read ``artifacts.stages``. A stage with a problem goes to ``broken``: its switches are no second problem."""
        for name, (stage_line, slots) in self._pairs(line, node, _STAGES).items():
            before = len(self._problems)
            path = (*_STAGES, name)
            try:
                stage = self._layers.table.get(name) or Stage(name, ())
                for slot, (slot_line, change) in self._pairs(stage_line, slots, path).items():
                    if slot == "on_failure":
                        self._leaf(slot_line, change, schema_of(SlotChange)[slot], (*path, slot))
                        stage = replace(stage, on_failure=self._layers.values.get((*path, slot)))
                    else:
                        stage = self._slot(slot_line, change, stage, slot)
                self._layers.table = self._layers.table.with_stage(stage)
            except StagesinkError as error:
                self._problem(stage_line, path, str(error))
            if len(self._problems) > before:
                broken[name] = lambda line, node: None

    def _slot(self, line: int, node: Node, stage: Stage, name: str) -> Stage:
        """Return the stage with this slot added or changed."""
        path = (*_STAGES, stage.name, name)
        before = len(self._problems)
        self._mapping(line, node, schema_of(SlotChange), path)
        if len(self._problems) > before:
            return stage
        change = build(SlotChange, path, self._layers.values)
        old = stage.slot(name)
        destination = change.destination or (old.destination if old else None)
        if destination is None:
            self._problem(line, path, f"a new slot needs a destination, for example '{name}.json'")
            return stage
        if old is not None and change.kind not in (None, old.kind):
            self._problem(line, path, f"this slot is of the kind {old.kind}, for good; add a slot of another name")
            return stage
        switch = change.switch or (old.switch if old else f"log_{name}")
        kind = change.kind or (old.kind if old else "file")
        on_failure = change.on_failure or (old.on_failure if old else None)
        priority = change.priority if change.priority is not None else old.priority if old else DEFAULT_PRIORITY
        self._layers.origins[".".join(path)] = f"{self._file}:{line}"
        try:
            return stage.with_slot(Slot(name, switch, destination, kind, priority, on_failure))
        except StagesinkError as error:
            self._problem(line, path, str(error))
            return stage

    def _problem(self, line: int, path: KeyPath, text: str) -> None:
        where = f"{'.'.join(path)}: " if path else ""
        self._problems.append((line, f"{self._file}:{line}: {where}{text}"))

    def _repeated(self, node: MappingNode, path: KeyPath, only: tuple[str, ...] | None = None) -> None:
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and (only is None or key.value in only):
                same = (key.tag, key.value)
                if same in first:
                    self._problem(_line(key), (*path, key.value), f"set twice; the first is on line {first[same]}")
                first.setdefault(same, _line(key))

    def _repeated_inside(self, node: Node, path: KeyPath, seen: set[int]) -> None:
        # All of it before anything is merged: merging (`<<`) brings in keys that may rightly be set again.
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, MappingNode):
            self._repeated(node, path)
            for key, value in node.value:
                self._repeated_inside(value, (*path, key.value) if isinstance(key, ScalarNode) else path, seen)
        elif isinstance(node, SequenceNode):
            for value in node.value:
                self._repeated_inside(value, path, seen)

    def _not_yaml(self, error: yaml.MarkedYAMLError) -> NoReturn:
        mark = error.problem_mark or error.context_mark
        number = mark.line if mark is not None else 0
        line = [*self._text.split("\n"), ""][number]
        if "\t" in line[: len(line) - len(line.lstrip())]:
            problem = "a tab in the indentation, which must be spaces"
        else:
            problem = ": ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{self._file}:{number + 1}: not valid YAML: {problem}.", hint="Mend that line.") from None


class _BoundedLoader(yaml.SafeLoader):
    """Gives up on a document that has more nodes, or deeper ones, than any configuration."""

    def __init__(self, file: Path, text: str) -> None:
        super().__init__(text)
        self._file = file
        self._count = 0
        self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._count += 1
        self._depth += 1
        if self._count > MAX_VALUES:
            raise _too_much(self._file, self.line + 1, f"more than {MAX_VALUES} values")
        if self._depth > MAX_DEPTH:
            raise _too_much(self._file, self.line + 1, f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _check_size(file: Path, root: MappingNode) -> None:
    sizes: dict[int, float] = {}
    for key, value in root.value:
        if _written_out(value, sizes) > MAX_VALUES:
            name = key.value if isinstance(key, ScalarNode) else _kind(key)
            raise _too_much(file, _line(key), f"{name}: its aliases stand for more than {MAX_VALUES} values")


def _written_out(node: Node, sizes: dict[int, float]) -> float:
    """Count the values a node stands for. A node inside itself stands for infinitely many."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # while we are in it
        inner: list[Node] = []
        if isinstance(node, MappingNode):
            inner = [each for pair in node.value for each in pair]
        elif isinstance(node, SequenceNode):
            inner = node.value
        sizes[id(node)] = 1 + sum(_written_out(each, sizes) for each in inner)
    return sizes[id(node)]


def _too_much(file: Path, line: int, what: str) -> ConfigError:
    return ConfigError(f"{file}:{line}: {what}.", hint="No configuration needs that; check that it is the right file.")


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _kind(node: Node) -> str:
    """Name what a node is, without what it holds."""
    kinds = {ScalarNode: "a single value", SequenceNode: "a list", MappingNode: "a mapping"}
    return kinds[type(node)]
