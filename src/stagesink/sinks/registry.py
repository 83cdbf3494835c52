"""Which driver serves which URI.

Other packages add theirs through the entry-point group ``stagesink.sinks``: the entry's name is the scheme, its value a
callable ``(uri, storage_options) -> ArtifactSink``.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, cast

from stagesink.errors import ConfigError, MissingExtra, UnknownScheme
from stagesink.redaction import without_secrets
from stagesink.sinks.protocol import ArtifactSink

ENTRY_POINT_GROUP = "stagesink.sinks"
OWN_ENGINE = "stagesink"

SinkFactory = Callable[[str, Mapping[str, Any]], ArtifactSink]

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):")  # two letters at least, so that C:\\ is a path

_BUILT_IN = {
    "memory": "stagesink.sinks.memory:open_memory",
    "file": "stagesink.sinks.local:open_local",
    "mlflow": "stagesink.sinks.mlflow:open_mlflow",
    "azureml": "stagesink.sinks.azureml:open_azureml",
}
_ENGINES = {
    OWN_ENGINE: _BUILT_IN,
    "mlflow": {"mlflow": "stagesink.sinks.mlflow:open_mlflow_client"},
}
_TRACKING = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")
"""Schemes of MLflow's tracking URIs, which are sinks only behind ``mlflow+``."""

_FALLBACK = "stagesink.sinks.fsspec:open_fsspec"
_FASTER = dict.fromkeys(("s3", "s3a", "az", "abfs", "abfss", "gs", "gcs"), "stagesink.sinks.obstore:open_obstore")
"""Who carries a scheme of fsspec's instead, where obstore is installed; the store and its names are the same."""


def scheme_of(uri: str) -> str:
    """Return the lower-case scheme of ``uri``; a bare path has the scheme ``file``."""
    match = _SCHEME.match(uri)
    return match.group(1).lower() if match else "file"


def open_sink(uri: str, *, storage_options: Mapping[str, Any] | None = None, engine: str = OWN_ENGINE) -> ArtifactSink:
    """Open the sink that serves ``uri``.

    Parameters
    ----------
    uri : str
        ``file:./artifacts``, ``memory:``, ``s3://bucket/prefix``, ``mlflow:``, ``mlflow+http://host:5000``, any other
        fsspec URL, or the scheme of an installed plug-in. What stands before a ``+`` names the driver.
    storage_options : mapping, optional
        Handed to the driver: credentials, endpoint and the like, as the backend's own client names them.
    engine : {"stagesink", "mlflow"}
        Whose code moves the bytes. ``mlflow`` has mlflow's own client carry ``mlflow:`` sinks, for a roll-out with no
        risk.

    Returns
    -------
    ArtifactSink
        Opened without asking the backend: whether that can be reached shows at the first operation.

    Raises
    ------
    UnknownScheme
        No driver serves this scheme.
    MissingExtra
        The driver's package is not installed; the message says how to install it.
    ConfigError
        The driver cannot use the URI or an option, or the engine carries no such sink.
    """
    _check_form(uri)
    driver = driver_of(uri)
    factory = _factory(driver) if engine == OWN_ENGINE else _factory_of_engine(engine, driver)
    return factory(uri, dict(storage_options or {}))


def _check_form(uri: str) -> None:
    """Refuse what was meant as the address of a server: it would be a folder of that name, or a store of files."""
    name = uri.partition("+")[0]
    if not {"/", os.sep, ":"} & set(uri) and is_registered(name):
        raise ConfigError(
            f"The sink {uri!r} is a name, and no address.", hint=f"Write '{uri}:' for the sink, './{uri}' for a folder."
        )
    scheme = scheme_of(uri)
    if scheme in _TRACKING and not is_registered(scheme):
        raise UnknownScheme(
            f"{without_secrets(uri)} is no sink.",
            hint=f"For an MLflow tracking server write mlflow+{without_secrets(uri)}.",
        )


def driver_of(uri: str) -> str:
    """Return what names the driver: the scheme, up to its ``+`` where a driver of its own has that name."""
    scheme = scheme_of(uri)
    before, _, _ = scheme.partition("+")
    return before if is_registered(before) and not is_registered(scheme) else scheme


def is_registered(scheme: str) -> bool:
    """Tell whether a driver of its own serves the scheme, built in or plugged in. What fsspec serves does not count."""
    return scheme in _BUILT_IN or any(entry.name == scheme for entry in entry_points(group=ENTRY_POINT_GROUP))


def _factory_of_engine(engine: str, driver: str) -> SinkFactory:
    drivers = _ENGINES.get(engine, {})
    if driver not in drivers:
        carried = " and ".join(f"{name}:" for name in drivers) or "no"
        raise ConfigError(
            f"The engine {engine!r} carries {carried} sinks, not {driver}:.",
            hint="Leave artifacts.engine (STAGESINK_ENGINE) at 'stagesink', or upload to mlflow:.",
        )
    return _load(drivers[driver], driver)


def _factory(scheme: str) -> SinkFactory:
    if scheme in _BUILT_IN:
        return _load(_BUILT_IN[scheme], scheme)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == scheme:
            return cast("SinkFactory", entry.load())
    from fsspec.registry import known_implementations, registry

    if scheme in known_implementations or scheme in registry:
        faster = scheme in _FASTER and find_spec("obstore") is not None
        return _load(_FASTER[scheme] if faster else _FALLBACK, "all")
    known = sorted({*_BUILT_IN, *known_implementations, *(e.name for e in entry_points(group=ENTRY_POINT_GROUP))})
    near = difflib.get_close_matches(scheme, known, n=1)
    raise UnknownScheme(
        f"No sink serves the scheme {scheme!r}.",
        hint=f"Did you mean {near[0]!r}?"
        if near
        else "Use file:, memory:, s3://, az://, gs:// or install its plug-in.",
    )


def _load(path: str, extra: str) -> SinkFactory:
    module, _, name = path.partition(":")
    try:
        return cast("SinkFactory", getattr(import_module(module), name))
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"The package {error.name} is not installed.", hint=f"pip install 'stagesink[{extra}]'"
        ) from error
