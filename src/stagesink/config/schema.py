"""The schema as a tree: a key maps to a :class:`Leaf`, or to the schema of the mapping under it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from stagesink.config.model import Artifacts
from stagesink.stages import STAGES, StageTable

KeyPath: TypeAlias = "tuple[str, ...]"
Schema: TypeAlias = "dict[str, Any]"

PREFIX = "STAGESINK_"

_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class WrongValue(Exception):
    """A value that its setting does not take. The text says what it takes, and repeats no secret."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting: its type, and what its dataclass field declares about it."""

    type: Any
    facts: Mapping[str, Any] = field(default_factory=dict)

    def read(self, value: object, *, strict: bool) -> Any:
        """Return the value in the leaf's type, or raise :class:`WrongValue`.

        Strict is for YAML and arguments, where 8 and '8' differ; a variable holds text, which is taken for numbers too.
        """
        from pydantic import Field, TypeAdapter, ValidationError

        bounds = {name: self.facts[name] for name in ("ge", "le", "min_length") if name in self.facts}
        annotated: Any = Annotated[self.type, Field(allow_inf_nan=False if self.type is float else None, **bounds)]
        try:
            return TypeAdapter(annotated).validate_python(value, strict=strict)
        except ValidationError:
            # From None: pydantic's words repeat the value, which may be a secret, and differ from release to release.
            raise WrongValue(self._complaint(value)) from None

    @property
    def is_mapping(self) -> bool:
        """True for a mapping of anything, as `storage_options` is."""
        return get_origin(self.type) is dict

    @property
    def _choices(self) -> tuple[str, ...]:
        alternatives = (self.type, *get_args(self.type))
        return next((get_args(each) for each in alternatives if get_origin(each) is Literal), ())

    def _complaint(self, value: object) -> str:
        near = nearest(value, self._choices) if isinstance(value, str) else None
        got = _kind(value) if self.is_mapping else _shown(value)
        return f"expected {self._expected()}, got {got}" + (f"; did you mean {near!r}?" if near else "")

    def _expected(self) -> str:
        if self.is_mapping:
            return "a mapping whose keys are text"
        if self._choices:
            return f"one of {', '.join(self._choices)}"
        name = next(_TYPE_NAMES[each] for each in (self.type, *get_args(self.type)) if each in _TYPE_NAMES)
        unit = f" of {self.facts['unit']}" if "unit" in self.facts else ""
        low, high = self.facts.get("ge"), self.facts.get("le")
        if high is not None:
            return f"{name}{unit} from {low} to {high}"
        if low is not None:
            return f"{name}{unit}, {low} or more"
        return name + unit


def schema_of(cls: Any) -> Schema:
    """Read the schema off a dataclass."""
    types = get_type_hints(cls)
    return {
        each.name: schema_of(types[each.name])
        if is_dataclass(types[each.name])
        else Leaf(types[each.name], each.metadata)
        for each in fields(cls)
    }


def full_schema(table: StageTable) -> Schema:
    """Return the schema of both our sections; the stage table says which switches there are."""
    switches = {stage: {switch: Leaf(bool) for switch in table[stage].switches} for stage in table}
    return {"artifacts": schema_of(Artifacts), "tracking": switches}


def leaves(schema: Schema, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Leaf]]:
    """Yield every setting with its path."""
    for name, inner in schema.items():
        if isinstance(inner, Leaf):
            yield (*path, name), inner
        else:
            yield from leaves(inner, (*path, name))


def variable_leaves(table: StageTable) -> dict[str, tuple[KeyPath, Leaf]]:
    """Return, by variable, the setting it sets; a mapping has none."""
    found = {}
    for path, leaf in leaves(full_schema(table)):
        parts = path[1:] if path[0] == "artifacts" else path
        name = leaf.facts.get("variable") or PREFIX + "_".join(parts).upper().replace("-", "_")
        if not leaf.is_mapping:
            found[name] = (path, leaf)
    return found


def variables(table: StageTable = STAGES) -> dict[str, str]:
    """Return every ``STAGESINK_*`` variable that sets something, with the key it sets (``artifacts.workers``)."""
    return {name: ".".join(path) for name, (path, _) in variable_leaves(table).items()}


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name most like this one, or None when none is alike."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[near[0]] if near else None


def suggestion(name: str, known: Collection[str]) -> str:
    """Say which known name was meant, or which there are."""
    near = nearest(name, known)
    return f"did you mean {near!r}?" if near else f"known here: {', '.join(known)}"


def _kind(value: object) -> str:
    return {dict: "a mapping", list: "a list", type(None): "nothing"}.get(type(value), "a single value")


def _shown(value: object) -> str:
    if value is None or isinstance(value, (dict, list)):
        return _kind(value)
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
