"""File, environment and arguments, laid over one another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from stagesink.config.layers import Layers, warn_once
from stagesink.config.model import FILE_NAME, Artifacts, Config
from stagesink.config.schema import PREFIX, WrongValue, leaves, nearest, schema_of, suggestion, variable_leaves
from stagesink.errors import ConfigError

MAX_BYTES = 1 << 20
"""Largest configuration file that is read, in bytes."""

SKIP_VARIABLE = "MLFLOW_SKIP_ARTIFACT_LOGGING"

_OTHER_VARIABLES = ("STAGESINK_CONFIG_DIR", "STAGESINK_RUN_ID")

# What mlflow's own client goes by. It counts retries, and we count tries.
_OF_MLFLOW = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": (("artifacts", "retries", "attempts"), 1),
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": (("artifacts", "retries", "initial"), 0),
}


def load_config(
    config_dir: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    arguments: Mapping[str, object] | None = None,
) -> Config:
    """Read the configuration.

    Parameters
    ----------
    config_dir : path, optional
        Folder that holds ``mlflow.yaml``; else ``STAGESINK_CONFIG_DIR``, else ``./config``. A folder or file that is
        not there means defaults.
    environ : mapping of str to str
        The environment. An empty variable counts as unset.
    arguments : mapping of str to object, optional
        What the caller set itself, by key under ``artifacts`` (``workers``, ``retries.attempts``); None counts as
        unset.

    Raises
    ------
    ConfigError
        The file cannot be read or is not YAML; a key is unknown, set twice or of the wrong type; a variable or an
        argument has a wrong value. Every such problem is in it, one a line.
    """
    named = config_dir if config_dir is not None else environ.get("STAGESINK_CONFIG_DIR") or None
    file = Path("config" if named is None else named, FILE_NAME)
    text = _read_text(file, implied=named is None)
    if text is None and named is not None and not Path(named).is_dir():
        warn_once(f"{named}: there is no such configuration folder; defaults hold")
    layers = Layers(file)
    _add_mlflow_retries(layers, environ)
    if text is not None:
        from stagesink.config.yaml_file import YamlReader

        YamlReader(layers, text).read()
    _add_environment(layers, environ)
    _add_arguments(layers, arguments or {})
    return layers.config(file_found=text is not None)


def skip_artifact_logging(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether ``MLFLOW_SKIP_ARTIFACT_LOGGING`` switches every upload off.

    ``true``, ``1`` and ``yes`` do, in any case; ``false``, ``0``, ``no`` and an empty value do not. Any other value is
    warned of and does not: better one upload too many than a training's artifacts lost over a typo.
    """
    value = environ.get(SKIP_VARIABLE, "").strip().lower()
    if value not in ("true", "1", "yes", "false", "0", "no", ""):
        warn_once(f"{SKIP_VARIABLE}: expected true or false, got {value[:40]!r}; it is ignored, artifacts are uploaded")
    return value in ("true", "1", "yes")


def _read_text(file: Path, *, implied: bool) -> str | None:
    """Return what the file holds, None when there is no file."""
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        if file.is_symlink():
            raise ConfigError(f"{file}: is a link to nothing.", hint="Mend or remove the link.") from None
        return None
    except NotADirectoryError:
        if implied:
            return None  # a file called `config` in the working folder is somebody else's
        raise ConfigError(f"{file.parent}: is a file.", hint=f"Name the folder that holds {FILE_NAME}.") from None
    except IsADirectoryError:
        raise ConfigError(f"{file}: is a folder.", hint=f"{FILE_NAME} must be a file.") from None
    except PermissionError:
        raise ConfigError(f"{file}: no permission to read it.", hint="Make it readable for this user.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{str(file)!r}: cannot be read: {reason}.", hint="Check the path.") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{file}: is larger than {MAX_BYTES >> 20} MiB.", hint="No configuration is; check the path.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: is not UTF-8 text.", hint="Save it as UTF-8.") from None


def _add_mlflow_retries(layers: Layers, environ: Mapping[str, str]) -> None:
    """Take mlflow's variables for defaults: whoever set them for its client means them for its successor."""
    for name, (path, more) in _OF_MLFLOW.items():
        text = environ.get(name, "").strip()
        if text.isdecimal():
            layers.set(path, int(text) + more, name)
        elif text:
            warn_once(f"{name}: expected a whole number, got {text[:40]!r}; it is ignored")


def _add_environment(layers: Layers, environ: Mapping[str, str]) -> None:
    ours = sorted(
        name for name in environ if name.startswith(PREFIX) and environ[name] and name not in _OTHER_VARIABLES
    )
    known = variable_leaves(layers.table) if ours else {}
    for name in ours:
        if name not in known:
            endings = (each.removeprefix(PREFIX) for each in (*known, *_OTHER_VARIABLES))  # all begin alike
            near = nearest(name.removeprefix(PREFIX), endings)
            warn_once(f"{name}: no such setting, it is ignored" + (f"; did you mean {PREFIX}{near}?" if near else ""))
            continue
        path, leaf = known[name]
        try:
            layers.set(path, leaf.read(environ[name], strict=False), name)
        except WrongValue as wrong:
            layers.problems.append(f"{name}: {wrong}")


def _add_arguments(layers: Layers, arguments: Mapping[str, object]) -> None:
    known = {".".join(path): leaf for path, leaf in leaves(schema_of(Artifacts))} if arguments else {}
    for name, value in arguments.items():
        if name not in known:
            layers.problems.append(f"argument {name}: unknown; {suggestion(name, known)}")
        elif value is not None:
            try:
                layers.set(("artifacts", *name.split(".")), known[name].read(value, strict=True), "argument")
            except WrongValue as wrong:
                layers.problems.append(f"argument {name}: {wrong}")
