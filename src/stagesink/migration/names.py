"""What a name stands for, as far as a program's text tells: imports and assignments are followed, nothing is run.

A value is followed as text, its origin: ``mlflow.log_artifact`` however it was imported, ``mlflow.MlflowClient()`` for
an instance, ``'MLFLOW_RUN_ID'`` for a literal; a name that nothing in the file binds is ``?name``. The order of
statements plays no part: a name that is bound twice stands for what this package looks for, if one of the two is that.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

_ROUNDS = 20  # names that stand for names that stand for names; real programs need two or three
_WRAPPERS = frozenset({"Optional", "Union", "Annotated", "Final", "ClassVar", "InitVar"})
_PROPERTIES = frozenset({"property", "cached_property"})
_IMPORTERS = frozenset({"importlib.import_module", "?__import__"})

_Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef"
_Comprehension = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(eq=False)
class Scope:
    """The names of a module, class, function or comprehension."""

    node: ast.AST
    parent: Scope | None = None
    names: dict[str, Value] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()  # declared `global` here
    bases: tuple[ast.expr, ...] = ()

    @property
    def is_class(self) -> bool:
        return isinstance(self.node, ast.ClassDef)

    @property
    def module(self) -> Scope:
        return self if self.parent is None else self.parent.module


@dataclass(frozen=True)
class Function:
    """A function of the program, and where it was defined."""

    node: _Function
    scope: Scope


@dataclass(frozen=True)
class Class:
    """A class of the program."""

    scope: Scope


@dataclass(frozen=True)
class Instance:
    """An instance of a class of the program."""

    scope: Scope


Value: TypeAlias = "str | Function | Class | Instance | None"


@dataclass(frozen=True)
class _Binding:
    """A name or an attribute that something is assigned to."""

    target: ast.expr | str
    value: ast.expr | None
    annotation: ast.expr | None
    scope: Scope


class Names:
    """The names of one module.

    Parameters
    ----------
    tree : ast.Module
    """

    def __init__(self, tree: ast.Module) -> None:
        self.scope_of: dict[ast.AST, Scope] = {}
        self._bindings: list[_Binding] = []
        self._stars: list[str] = []
        self._collect(tree)
        for _ in range(_ROUNDS):
            # A list, not any(): each binding takes part in every round.
            if not any([self._settle(binding) for binding in self._bindings]):
                break

    def origin(self, node: ast.AST) -> str | None:
        """Return what an expression of the module comes from, or None when the text does not tell."""
        value = self._value(node, self.scope_of[node])
        return value if isinstance(value, str) else None

    # -- collecting: every node's scope, every binding ---------------------------------------------------------------

    def _collect(self, tree: ast.Module) -> None:
        # A stack, not recursion: generated code nests deeper than Python's own.
        waiting: list[tuple[ast.AST, Scope]] = [(tree, Scope(tree))]
        while waiting:
            node, scope = waiting.pop()
            self.scope_of[node] = scope
            waiting += self._enter(node, scope)

    def _enter(self, node: ast.AST, scope: Scope) -> Iterable[tuple[ast.AST, Scope]]:
        """Note what the node binds, and return its children with the scopes they are in."""
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self._put(scope, node.name, Function(node, scope))
            return self._enter_function(node, node.body, scope)
        if isinstance(node, ast.Lambda):
            return self._enter_function(node, [node.body], scope)
        if isinstance(node, ast.ClassDef):
            inner = Scope(node, scope, bases=tuple(node.bases))
            self._put(scope, node.name, Class(inner))
            return _children(node, scope, {id(each): inner for each in node.body})
        if isinstance(node, _Comprehension):
            scope = Scope(node, scope)
        self._bind(node, scope)
        return _children(node, scope, {})

    def _enter_function(
        self, node: _Function | ast.Lambda, body: Iterable[ast.AST], scope: Scope
    ) -> Iterable[tuple[ast.AST, Scope]]:
        declared = (each.names for each in ast.walk(node) if isinstance(each, ast.Global))
        inner = Scope(node, scope, elsewhere=frozenset(name for names in declared for name in names))
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        arguments += [each for each in (node.args.vararg, node.args.kwarg) if each is not None]
        for argument in arguments:
            inner.names[argument.arg] = None
            self._bindings.append(_Binding(argument.arg, None, argument.annotation, inner))
        decorators = [] if isinstance(node, ast.Lambda) else [_last_name(each) for each in node.decorator_list]
        if scope.is_class and arguments and "staticmethod" not in decorators:
            inner.names[arguments[0].arg] = (Class if "classmethod" in decorators else Instance)(scope)
        return _children(node, scope, {id(each): inner for each in body})

    def _bind(self, node: ast.AST, scope: Scope) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                self._put(scope, alias.asname or first, alias.name if alias.asname else first)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                if alias.name == "*":
                    self._stars.append(module)
                else:
                    dot = "" if module.endswith(".") or not module else "."
                    self._put(scope, alias.asname or alias.name, f"{module}{dot}{alias.name}")
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(target, node.value, scope)
        elif isinstance(node, ast.AnnAssign):
            self._assign(node.target, node.value, scope, node.annotation)
        elif isinstance(node, ast.NamedExpr):
            while isinstance(scope.node, _Comprehension) and scope.parent is not None:
                scope = scope.parent
            self._assign(node.target, node.value, scope)
        elif isinstance(node, ast.withitem):
            self._assign(node.optional_vars, node.context_expr, scope)
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension, ast.AugAssign)):
            self._assign(node.target, None, scope)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name is not None:
            self._put(scope, node.name, None)

    def _assign(
        self, target: ast.expr | None, value: ast.expr | None, scope: Scope, annotation: ast.expr | None = None
    ) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            values: list[ast.expr | None] = [None] * len(target.elts)
            if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(values):
                values = list(value.elts)
            for each, part in zip(target.elts, values, strict=True):
                self._assign(each, part, scope)
        elif isinstance(target, ast.Starred):
            self._assign(target.value, None, scope)
        elif isinstance(target, ast.Name):
            self._put(scope, target.id, None)
            self._bindings.append(_Binding(target.id, value, annotation, scope))
        elif isinstance(target, ast.Attribute):
            self._bindings.append(_Binding(target, value, annotation, scope))

    # -- settling: what each name stands for -------------------------------------------------------------------------

    def _settle(self, binding: _Binding) -> bool:
        """Evaluate a binding with what is known by now; return whether that taught anything."""
        value = self._annotated(binding.annotation, binding.scope) if binding.annotation is not None else None
        if value is None and binding.value is not None:
            value = self._value(binding.value, binding.scope)
        if value is None:
            return False
        if isinstance(binding.target, str):
            return self._put(binding.scope, binding.target, value)
        owner = self._value(binding.target.value, binding.scope) if isinstance(binding.target, ast.Attribute) else None
        if isinstance(owner, (Class, Instance)) and isinstance(binding.target, ast.Attribute):
            return self._put(owner.scope, binding.target.attr, value)
        return self._put(binding.scope, ast.unparse(binding.target), value)  # `trainer.client = MlflowClient()`

    @staticmethod
    def _put(scope: Scope, name: str, value: Value) -> bool:
        if name in scope.elsewhere:
            scope = scope.module
        if _weight(value) <= _weight(scope.names.get(name)):
            scope.names.setdefault(name, None)
            return False
        scope.names[name] = value
        return True

    # -- evaluating --------------------------------------------------------------------------------------------------

    def _value(self, node: ast.AST, scope: Scope) -> Value:
        if isinstance(node, ast.Name):
            return self._look_up(node.id, scope)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, scope)
        if isinstance(node, ast.Call):
            return self._called(node, scope)
        if isinstance(node, ast.Constant):
            return repr(node.value) if isinstance(node.value, str) else None
        if isinstance(node, (ast.NamedExpr, ast.Await)):
            return self._value(node.value, scope)
        if isinstance(node, ast.IfExp):
            return self._heaviest((node.body, node.orelse), scope)
        if isinstance(node, ast.BoolOp):
            return self._heaviest(node.values, scope)
        return None

    def _heaviest(self, nodes: Iterable[ast.AST], scope: Scope) -> Value:
        return max((self._value(node, scope) for node in nodes), key=_weight)

    def _look_up(self, name: str, scope: Scope) -> Value:
        here: Scope | None = scope
        while here is not None:
            if name in here.names and (here is scope or not here.is_class):
                return here.names[name]
            here = here.parent
        star = next((module for module in self._stars if _is_mlflow(module)), None)
        return f"{star}.{name}" if star is not None else f"?{name}"

    def _attribute(self, node: ast.Attribute, scope: Scope) -> Value:
        if isinstance(node.value, (ast.Name, ast.Attribute)):
            dotted = ast.unparse(node)
            if any(dotted in each.names for each in _outwards(scope)):
                return self._look_up(dotted, scope)
        owner = self._value(node.value, scope)
        if isinstance(owner, (Class, Instance)):
            return self._member(owner, node.attr, set())
        return f"{owner}.{node.attr}" if isinstance(owner, str) else None

    def _member(self, owner: Class | Instance, name: str, seen: set[Scope]) -> Value:
        seen.add(owner.scope)
        if name in owner.scope.names:
            value = owner.scope.names[name]
            if isinstance(value, Function) and _PROPERTIES & {_last_name(each) for each in value.node.decorator_list}:
                return self._returned(value)
            return value
        for base in owner.scope.bases:
            parent = self._value(base, owner.scope)
            if isinstance(parent, Class) and parent.scope not in seen:
                value = self._member(parent, name, seen)
                if value is not None:
                    return value
        return None

    def _called(self, node: ast.Call, scope: Scope) -> Value:
        function = self._value(node.func, scope)
        if isinstance(function, Class):
            return Instance(function.scope)
        if isinstance(function, Function):
            return self._returned(function)
        if not isinstance(function, str):
            return None
        if function in _IMPORTERS and node.args and isinstance(module := node.args[0], ast.Constant):
            return str(module.value)
        return f"{function}()"

    def _returned(self, function: Function) -> Value:
        return self._annotated(function.node.returns, function.scope) if function.node.returns is not None else None

    def _annotated(self, annotation: ast.expr, scope: Scope) -> Value:
        """Return an instance of what an annotation names."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            try:
                return self._annotated(ast.parse(annotation.value, mode="eval").body, scope)
            except SyntaxError:
                return None
        if isinstance(annotation, ast.BinOp):
            either = (self._annotated(each, scope) for each in (annotation.left, annotation.right))
            return max(either, key=_weight)
        if isinstance(annotation, ast.Subscript) and _last_name(annotation.value) in _WRAPPERS:
            inner = annotation.slice
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return max((self._annotated(part, scope) for part in parts), key=_weight)
        if not isinstance(annotation, (ast.Name, ast.Attribute)):
            return None
        named = self._value(annotation, scope)
        if isinstance(named, Class):
            return Instance(named.scope)
        return f"{named}()" if isinstance(named, str) else None


def _children(node: ast.AST, scope: Scope, inner: dict[int, Scope]) -> Iterator[tuple[ast.AST, Scope]]:
    for child in ast.iter_child_nodes(node):
        yield child, inner.get(id(child), scope)


def _outwards(scope: Scope) -> Iterator[Scope]:
    here: Scope | None = scope
    while here is not None:
        yield here
        here = here.parent


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_mlflow(origin: str) -> bool:
    return origin.lstrip("?").partition(".")[0] == "mlflow"


def _weight(value: Value) -> int:
    """Rank what a name may stand for: what this package looks for beats all else."""
    if value is None:
        return 0
    return 2 if not isinstance(value, str) or _is_mlflow(value) else 1
