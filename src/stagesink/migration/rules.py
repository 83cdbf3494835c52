"""What is found in a module, and what to write instead."""

from __future__ import annotations

import ast
import os.path
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

from stagesink.migration.findings import Finding, Rule
from stagesink.migration.names import Names

_FLUENT = re.compile(r"\??mlflow\.(?:\w+\.)*(log_artifacts?)")
_CLIENT_MADE = re.compile(r"\??mlflow\.(?:\w+\.)*MlflowClient")
_SERVER_SET = re.compile(r"\??mlflow\.(?:\w+\.)*set_tracking_uri")
_CLIENT = re.compile(r"\??mlflow\.(?:\w+\.)*MlflowClient\(\)\.(log_artifacts?)")
# With a "(" before it, it would be a method: ArtifactUploader has one of these names.
_OLD = re.compile(r"(?:\?|[\w.]*\.)(log_artifacts?_safe|upload_checkpoint_archive)")
_ACTIVE_RUN = re.compile(r"\??mlflow\.(?:\w+\.)*active_run\(\)\.info")
_RUN_ID = ("run_id", "run_uuid")
_ENVIRON = re.compile(r"\??os\.environ")
_GETENV = re.compile(r"\??os\.(?:environ\.get|getenv)")

_CONFIGURED = ("run_id", "max_retries", "base_delay", "config_dir", "sink")
_PARAMETERS: dict[Rule, tuple[str, ...]] = {
    "log-artifact": ("local", "folder", "run_id"),
    "log-artifacts": ("local", "folder", "run_id"),
    "client-log-artifact": ("run_id", "local", "folder"),
    "client-log-artifacts": ("run_id", "local", "folder"),
    "log-artifact-safe": ("local", "folder", *_CONFIGURED),
    "log-artifacts-safe": ("local", "folder", *_CONFIGURED),
    "upload-checkpoint-archive": ("local", "manifest", "folder", *_CONFIGURED),
}
_KEYWORDS = {
    **{"local_path": "local", "local_dir": "local", "archive_path": "local", "artifact_path": "folder"},
    **{name: name for name in ("manifest", *_CONFIGURED)},
}
_UPLOADER = {"config_dir": "config_dir", "sink": "sink", "max_retries": "attempts", "base_delay": "initial"}

_VARIABLES: dict[str, tuple[Rule, str, str]] = {
    "'MLFLOW_RUN_ID'": (
        "run-id",
        "get_mlflow_run_id()",
        "or leave run_id out: ArtifactUploader and the stage helpers find the run themselves",
    ),
    "'MLFLOW_SKIP_ARTIFACT_LOGGING'": (
        "skip-variable",
        "leave the check out",
        "every upload of stagesink obeys this variable by itself",
    ),
}


class Advice(NamedTuple):
    """What to write, and what there is to know about it."""

    write: str
    note: str = ""


@dataclass(frozen=True)
class Match:
    """Something to replace."""

    node: ast.expr
    rule: Rule
    advice: Advice


def find(text: str, path: str) -> list[Finding]:
    """Return what is found in a module, in the order of its lines.

    Parameters
    ----------
    text : str
        The module's source.
    path : str
        Its name, for the findings.

    Raises
    ------
    SyntaxError, ValueError, RecursionError, MemoryError
        It cannot be parsed, or is nested too deep.
    """
    tree = ast.parse(text)
    lines = text.split("\n")
    findings = []
    for match in _Module(tree, text).matches():
        line = lines[match.node.lineno - 1].encode()  # ast counts columns in bytes
        column = len(line[: match.node.col_offset].decode(errors="replace")) + 1
        found = _on_one_line(text, match.node)
        findings.append(Finding(path, match.node.lineno, column, match.rule, found, *match.advice))
    return sorted(findings, key=lambda finding: (finding.line, finding.column))


class _Module:
    def __init__(self, tree: ast.Module, text: str) -> None:
        self.tree = tree
        self.text = text
        self.names = Names(tree)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        self._names_servers = {
            "client": any(self._is(_CLIENT_MADE, call.func) and (call.args or call.keywords) for call in calls),
            "fluent": any(self._is(_SERVER_SET, call.func) for call in calls),
        }

    def matches(self) -> Iterator[Match]:
        followed = set()  # functions that are called, or get another name: their calls are what is found
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                followed.add(node.func)
            elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
                followed.add(node.value)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield from self._call(node)
            elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Load):
                yield from self._reference(node, handed_on=node not in followed)
            elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
                yield from self._variable(node, node.value, node.slice)
            elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
                yield from self._variable(node, node.comparators[0], node.left)

    def _is(self, pattern: re.Pattern[str], node: ast.expr) -> bool:
        origin = self.names.origin(node)
        return origin is not None and pattern.fullmatch(origin) is not None

    def _rule_of(self, function: ast.expr) -> Rule | None:
        """Return the rule for what uploads when it is called."""
        origin = self.names.origin(function)
        if origin is None:
            return None
        for pattern, prefix in ((_CLIENT, "client-"), (_FLUENT, ""), (_OLD, "")):
            if found := pattern.fullmatch(origin):
                return cast("Rule", prefix + found[1].replace("_", "-"))
        return None

    def _call(self, call: ast.Call) -> Iterator[Match]:
        if (rule := self._rule_of(call.func)) is not None:
            yield Match(call, rule, self._with_server(rule, self._advice(rule, call)))
        elif self._is(_GETENV, call.func) and call.args:
            yield from self._known(call, call.args[0])

    def _reference(self, node: ast.Attribute | ast.Name, *, handed_on: bool) -> Iterator[Match]:
        if isinstance(node, ast.Attribute) and node.attr in _RUN_ID and self._is(_ACTIVE_RUN, node.value):
            yield Match(node, "run-id", Advice(*_VARIABLES["'MLFLOW_RUN_ID'"][1:]))
        elif handed_on and (rule := self._rule_of(node)) is not None:
            yield Match(node, rule, Advice(_generic(rule), "handed on as a function here"))

    def _variable(self, node: ast.expr, environ: ast.expr, key: ast.expr) -> Iterator[Match]:
        if self._is(_ENVIRON, environ):
            yield from self._known(node, key)

    def _known(self, node: ast.expr, key: ast.expr) -> Iterator[Match]:
        known = _VARIABLES.get(self.names.origin(key) or "")
        if known is not None:
            yield Match(node, known[0], Advice(*known[1:]))

    # -- what to write -----------------------------------------------------------------------------------------------

    def _with_server(self, rule: Rule, advice: Advice) -> Advice:
        """Add a note where the module says itself which server its artifacts go to."""
        kind = "client" if rule.startswith("client-") else "fluent" if rule in ("log-artifact", "log-artifacts") else ""
        if not self._names_servers.get(kind):
            return advice
        note = 'name the server, as this module does: sink="mlflow+<tracking URI>", or MLFLOW_TRACKING_URI'
        return Advice(advice.write, f"{advice.note}; {note}" if advice.note else note)

    def _advice(self, rule: Rule, call: ast.Call) -> Advice:
        given = _arguments(call, _PARAMETERS[rule])
        if given is None:
            return Advice(_generic(rule), "the arguments are not all spelled out here")
        uploader = self._uploader(given)
        if rule == "upload-checkpoint-archive":
            arguments = [self._source(given["local"])]
            if "manifest" in given:
                arguments.append(self._source(given["manifest"]))
            if "folder" in given:
                arguments.append(("" if "manifest" in given else "artifact_path=") + self._source(given["folder"]))
            return Advice(f"{uploader}.upload_checkpoint_archive({', '.join(arguments)})")
        local = self._source(_unwrapped(given["local"]))
        folder = given.get("folder")
        if "artifacts" in rule:
            call_text, note = self._for_folder(local, folder)
        else:
            call_text, note = self._for_file(local, given["local"], folder)
        return Advice(f"{uploader}.{call_text}", note)

    def _uploader(self, given: dict[str, ast.expr]) -> str:
        arguments = [self._source(given["run_id"])] if "run_id" in given else []
        arguments += [f"{ours}={self._source(given[name])}" for name, ours in _UPLOADER.items() if name in given]
        return f"ArtifactUploader({', '.join(arguments)})"

    def _for_folder(self, local: str, folder: ast.expr | None) -> tuple[str, str]:
        if folder is None:
            return f"add_files({local})", ""
        where = self._source(folder)
        note = ""
        if "checkpoint" in f"{local} {where}".lower():
            # Not by itself: the folder may be filled by many calls, whose files it would remove.
            note = f"if it is all that lies there, upload_checkpoint({local}, {where}) replaces the one before"
        return f"add_files({local}, {where})", note

    def _for_file(self, local: str, given: ast.expr, folder: ast.expr | None) -> tuple[str, str]:
        if folder is None:
            name = self._name(given)
            if name is not None and not os.path.splitext(name)[1]:
                return f"upload_file({local})", f"if it is a folder, add_files({local}, {_quoted(name)})"
            return f"upload_file({local})", ""
        if not isinstance(folder, ast.Constant) or not isinstance(folder.value, str):
            return f"add_files({local}, {self._source(folder)})", ""  # it may be None, which is the root
        where = folder.value
        name = self._name(given)
        if name is None and re.search(r'["{}\\\n]', local):  # no Python before 3.12 takes these in an f-string
            return f"add_files({local}, {_quoted(where)})", ""
        write = f"upload_file({local}, " + (
            f'f"{where}/{{Path({local}).name}}")' if name is None else f"{_quoted(f'{where}/{name}')})"
        )
        if os.path.basename(where) == name:
            return write, f"so far it lands in a folder of its own name; {_quoted(where)} was probably meant"
        if name is None and os.path.splitext(where)[1]:
            return write, f"{where} is a folder to mlflow; to name the file so, write {_quoted(where)}"
        return write, ""

    def _name(self, node: ast.expr) -> str | None:
        """Return the last part of a path, where its text tells."""
        node = _unwrapped(node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            return self._name(node.right)
        if isinstance(node, ast.Call) and node.args and not node.keywords:
            origin = self.names.origin(node.func) or ""
            if re.fullmatch(r"\??(os\.path\.join|pathlib\.(Pure)?(Posix)?Path)", origin):
                return self._name(node.args[-1])
        if isinstance(node, ast.JoinedStr) and node.values:
            last = node.values[-1]
            return self._name(last) if isinstance(last, ast.Constant) and "/" in str(last.value) else None
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return os.path.basename(node.value) or None
        return None

    def _source(self, node: ast.expr) -> str:
        return _on_one_line(self.text, node)


def _arguments(call: ast.Call, parameters: tuple[str, ...]) -> dict[str, ast.expr] | None:
    """Return the arguments by parameter, those that are None or empty left out; None when they are not all there."""
    if len(call.args) > len(parameters) or any(isinstance(each, ast.Starred) for each in call.args):
        return None
    given = dict(zip(parameters, call.args, strict=False))
    for keyword in call.keywords:
        name = _KEYWORDS.get(keyword.arg or "")
        if name not in parameters or name in given:
            return None
        given[name] = keyword.value
    if "local" not in given:
        return None
    return {
        name: node for name, node in given.items() if not isinstance(node, ast.Constant) or node.value not in (None, "")
    }


def _generic(rule: Rule) -> str:
    uploader = "ArtifactUploader(run_id)" if rule.startswith("client-") else "ArtifactUploader()"
    if rule == "upload-checkpoint-archive":
        return f"{uploader}.upload_checkpoint_archive"
    return f"{uploader}.add_files"


def _unwrapped(node: ast.expr) -> ast.expr:
    """Take the text conversion off a path: mlflow wants str, stagesink takes both."""
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        function = ast.unparse(node.func)
        if function in ("str", "os.fspath") and not isinstance(node.args[0], ast.Starred):
            return node.args[0]
    return node


def _quoted(text: str) -> str:
    return '"' + repr(text)[1:-1].replace('"', r"\"") + '"' if "'" not in text else repr(text)


def _on_one_line(text: str, node: ast.expr) -> str:
    source = ast.get_source_segment(text, node)
    return source if source is not None and "\n" not in source else ast.unparse(node)
