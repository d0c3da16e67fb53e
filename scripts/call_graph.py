"""Which function calls which, by static parse: the way from a command to a file on disk.

Resolved: names of the module, imported names (also inside functions), attributes of imported
modules, methods through `self`, and methods of a value whose class is known from an annotation,
a constructor, or the return annotation of a resolved call. A method of a base class or protocol
leads to the classes that implement it and that the path has constructed. A function that is passed
on as a value counts as called; a class counts when it is constructed or a method of it is called.
Not resolved, so not followed: values from containers of unannotated types, `getattr`, decorators
that replace a function by another. So the count is neither a strict upper nor a lower bound; it is
the same rule on every tree.
"""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from scripts.source_tree import Function, Module, import_targets

WRAPPERS = {"Optional", "Iterator", "Generator", "Final", "ClassVar", "Annotated"}
"""Generics whose first argument is the value that a caller works with."""
CONSTRUCTORS = ("__init__", "__post_init__", "__new__", "__enter__", "__call__")

Node = tuple[str, str]
"""(module, qualified name of a function, method or class)."""
Binding = tuple[str, str]
"""(module, name in it), or (module, "") for a module itself."""


@dataclass(slots=True)
class _Scope:
    """What the names of one function mean."""

    module: str
    own_class: str | None
    names: dict[str, Binding] = field(default_factory=dict)
    types: dict[str, Node] = field(default_factory=dict)


class CallGraph:
    """Call edges between the functions of a package that an entry leads to."""

    def __init__(self, modules: Mapping[str, Module], cuts: frozenset[str] = frozenset()) -> None:
        """Index the definitions; `cuts` are modules that the path does not enter."""
        self._modules = {name: m for name, m in modules.items() if name not in cuts}
        self._bindings: dict[str, dict[str, Binding]] = {}
        self._functions: dict[Node, Function] = {}
        self._classes: dict[Node, ast.ClassDef] = {}
        for module in self._modules.values():
            self._index(module)
        self._known_bases: dict[Node, set[Node]] = {}
        self._known_implementers: dict[tuple[Node, Node], bool] = {}
        self._fields = {node: self._field_annotations(node) for node in self._classes}

    def _index(self, module: Module) -> None:
        bindings: dict[str, Binding] = {}
        for node in _outside_functions(module.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for bound, target, attribute in import_targets(node, self._modules):
                    if bound:
                        bindings[bound] = (target, attribute)
            elif isinstance(node, Function):
                bindings[node.name] = (module.name, node.name)
                self._functions[module.name, node.name] = node
            elif isinstance(node, ast.ClassDef):
                bindings[node.name] = (module.name, node.name)
                self._classes[module.name, node.name] = node
                for child in node.body:
                    if isinstance(child, Function):
                        self._functions[module.name, f"{node.name}.{child.name}"] = child
        self._bindings[module.name] = bindings

    def edges_from(self, entry: Node) -> dict[Node, set[Node]]:
        """Return the call edges of everything that `entry` leads to.

        Raises:
            KeyError: the entry is not a function of the tree.
        """
        if entry not in self._functions:
            raise KeyError(entry)
        edges: dict[Node, set[Node]] = {}
        built: set[Node] = set()
        wanted: set[tuple[Node, Node, str]] = set()  # (caller, base class, method)
        waiting = {entry}
        while waiting:
            for node in waiting:
                edges[node] = set()
                for callee, method in self._calls(node):
                    if method is not None:
                        wanted.add((node, callee, method))
                        continue
                    edges[node].add(callee)
                    if callee in self._classes:
                        built.add(callee)
                        edges[node] |= set(self._construction(callee))
            for caller, base, method in wanted:  # all again: a class may be constructed late
                edges[caller] |= set(self._methods(base, method, built))
            waiting = {callee for found in edges.values() for callee in found} - set(edges)
        return edges

    def _construction(self, cls: Node) -> Iterator[Node]:
        for name in CONSTRUCTORS:
            if (found := self._method(cls, name)) is not None:
                yield found

    def _methods(self, base: Node, method: str, built: set[Node]) -> Iterator[Node]:
        """Yield the method as the class has it, and as constructed implementers have it."""
        if (found := self._method(base, method)) is not None:
            yield found
        for cls in built:
            if (
                cls != base
                and self._implements(cls, base)
                and (found := self._method(cls, method)) is not None
            ):
                yield found

    def _implements(self, cls: Node, base: Node) -> bool:
        """True where a class names `base` among its bases, or has every method of a protocol."""
        pair = (cls, base)
        if pair not in self._known_implementers:
            self._known_implementers[pair] = self._compare(cls, base)
        return self._known_implementers[pair]

    def _compare(self, cls: Node, base: Node) -> bool:
        if base in self._bases(cls):
            return True
        definition = self._classes[base]
        if not any("Protocol" in ast.unparse(one) for one in definition.bases):
            return False
        methods = [child.name for child in definition.body if isinstance(child, Function)]
        return bool(methods) and all(self._method(cls, name) is not None for name in methods)

    def _bases(self, cls: Node) -> set[Node]:
        if cls in self._known_bases:
            return self._known_bases[cls]
        found: set[Node] = set()
        for base in self._classes[cls].bases:
            resolved = self._class_of_annotation(base, cls[0])
            if resolved is not None and resolved != cls:
                found |= {resolved} | self._bases(resolved)
        self._known_bases[cls] = found
        return found

    def _method(self, cls: Node, name: str) -> Node | None:
        for owner in (cls, *sorted(self._bases(cls))):
            if (owner[0], f"{owner[1]}.{name}") in self._functions:
                return owner[0], f"{owner[1]}.{name}"
        return None

    def _field_annotations(self, cls: Node) -> dict[str, ast.expr]:
        found: dict[str, ast.expr] = {}
        for child in self._classes[cls].body:
            if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
                found[child.target.id] = child.annotation
        return found

    def _calls(self, node: Node) -> Iterator[tuple[Node, str | None]]:
        """Yield (function or class, None), or (class, method name) for a call through a value."""
        function = self._functions.get(node)
        if function is None:  # a class: its construction is an edge of whoever constructs it
            return
        scope = self._scope(node, function)
        called = {id(one.func): one for one in ast.walk(function) if isinstance(one, ast.Call)}
        for child in _without_annotations(function):
            if isinstance(child, ast.Name | ast.Attribute):
                yield from self._use(child, scope, called=id(child) in called)

    def _use(
        self, node: ast.Name | ast.Attribute, scope: _Scope, *, called: bool
    ) -> Iterator[tuple[Node, str | None]]:
        resolved = self._resolve(node, scope)
        if resolved is not None:
            if resolved in self._functions or (called and resolved in self._classes):
                yield resolved, None
            return
        if isinstance(node, ast.Attribute):
            owner = self._type(node.value, scope)
            if owner is None:
                cls = self._resolve(node.value, scope)  # Class.method
                owner = cls if cls in self._classes else None
            if owner is not None and not node.attr.startswith("__"):
                yield owner, node.attr

    def _scope(self, node: Node, function: Function) -> _Scope:
        module, name = node
        own = name.rpartition(".")[0] or None
        scope = _Scope(module=module, own_class=own, names=dict(self._bindings[module]))
        for child in ast.walk(function):
            if isinstance(child, ast.arg):
                scope.names.pop(child.arg, None)
            elif isinstance(child, ast.Name) and not isinstance(child.ctx, ast.Load):
                scope.names.pop(child.id, None)
        for child in ast.walk(function):
            if isinstance(child, ast.Import | ast.ImportFrom):
                for bound, target, attribute in import_targets(child, self._modules):
                    if bound:
                        scope.names[bound] = (target, attribute)
        arguments = function.args
        for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if one.annotation is not None:
                self._note(scope, one.arg, self._class_of_annotation(one.annotation, module))
        first = (*arguments.posonlyargs, *arguments.args)[:1]
        if own is not None and first and first[0].annotation is None:
            scope.types[first[0].arg] = (module, own)
        for child in _in_order(function):
            if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
                note = self._class_of_annotation(child.annotation, module)
                self._note(scope, child.target.id, note)
            elif isinstance(child, ast.Assign) and isinstance(child.targets[0], ast.Name):
                self._note(scope, child.targets[0].id, self._type(child.value, scope))
            elif isinstance(child, ast.NamedExpr):
                self._note(scope, child.target.id, self._type(child.value, scope))
            elif isinstance(child, ast.withitem) and isinstance(child.optional_vars, ast.Name):
                value = self._type(child.context_expr, scope)
                self._note(scope, child.optional_vars.id, value)
        return scope

    @staticmethod
    def _note(scope: _Scope, name: str, cls: Node | None) -> None:
        if cls is not None:
            scope.types[name] = cls
            scope.names.pop(name, None)

    def _resolve(self, node: ast.expr, scope: _Scope) -> Binding | None:
        """Return what a name or a dotted path means, followed through re-exports."""
        if isinstance(node, ast.Name):
            return self._definition(scope.names.get(node.id))
        if isinstance(node, ast.Attribute):
            before = self._resolve(node.value, scope)
            if before is None:
                return None
            module, name = before
            if not name:
                if f"{module}.{node.attr}" in self._modules:
                    return f"{module}.{node.attr}", ""
                return self._definition((module, node.attr))
            if before in self._classes:
                return self._method(before, node.attr)
        return None

    def _definition(self, binding: Binding | None) -> Binding | None:
        for _ in range(5):  # a re-export of a re-export; longer chains do not occur
            if binding is None or not binding[1] or binding in self._functions:
                return binding
            if binding in self._classes:
                return binding
            following = self._bindings.get(binding[0], {}).get(binding[1])
            if following is None or following == binding:
                return None
            binding = following
        return None

    def _type(self, node: ast.expr, scope: _Scope) -> Node | None:
        """Return the class of a value, or None where the rules of this module do not tell."""
        if isinstance(node, ast.Name):
            return scope.types.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._type(node.value, scope)
            return None if owner is None else self._field_type(owner, node.attr)
        if isinstance(node, ast.Await):
            return self._type(node.value, scope)
        if isinstance(node, ast.BoolOp):
            found = (self._type(value, scope) for value in node.values)
            return next((cls for cls in found if cls is not None), None)
        if isinstance(node, ast.IfExp):
            return self._type(node.body, scope) or self._type(node.orelse, scope)
        if isinstance(node, ast.Call):
            resolved = self._resolve(node.func, scope)
            if resolved in self._classes:
                return resolved
            if resolved is None and isinstance(node.func, ast.Attribute):
                owner = self._type(node.func.value, scope)
                resolved = None if owner is None else self._method(owner, node.func.attr)
            if resolved is not None and (function := self._functions.get(resolved)) is not None:
                own = resolved[1].rpartition(".")[0]
                returns = function.returns
                if own and returns is not None and ast.unparse(returns).endswith("Self"):
                    return resolved[0], own
                return None if returns is None else self._class_of_annotation(returns, resolved[0])
        return None

    def _field_type(self, cls: Node, name: str) -> Node | None:
        for owner in (cls, *sorted(self._bases(cls))):
            if (annotation := self._fields[owner].get(name)) is not None:
                return self._class_of_annotation(annotation, owner[0])
            for method in ("__init__", "__post_init__", "__enter__"):
                function = self._functions.get((owner[0], f"{owner[1]}.{method}"))
                if function is None:
                    continue
                for child in ast.walk(function):
                    target, value = _self_assignment(child)
                    if target != name:
                        continue
                    if isinstance(child, ast.AnnAssign):
                        return self._class_of_annotation(child.annotation, owner[0])
                    if isinstance(value, ast.Name | ast.Call):
                        return self._assigned_type(owner, function, value)
            getter = self._functions.get((owner[0], f"{owner[1]}.{name}"))
            if getter is not None and getter.returns is not None:
                return self._class_of_annotation(getter.returns, owner[0])
        return None

    def _assigned_type(
        self, owner: Node, function: Function, value: ast.Name | ast.Call
    ) -> Node | None:
        scope = _Scope(module=owner[0], own_class=owner[1], names=dict(self._bindings[owner[0]]))
        arguments = function.args
        for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if one.annotation is not None:
                self._note(scope, one.arg, self._class_of_annotation(one.annotation, owner[0]))
        return self._type(value, scope)

    def _class_of_annotation(self, node: ast.expr, module: str) -> Node | None:
        """Return the one class of the package that an annotation names, None for others."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self._class_of_annotation(ast.parse(node.value, mode="eval").body, module)
        if isinstance(node, ast.BinOp):  # X | None
            return self._class_of_annotation(node.left, module) or self._class_of_annotation(
                node.right, module
            )
        if isinstance(node, ast.Subscript):
            outer = ast.unparse(node.value).rpartition(".")[2]
            if outer not in WRAPPERS:
                return self._class_of_annotation(node.value, module)
            first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
            return self._class_of_annotation(first, module)
        scope = _Scope(module=module, own_class=None, names=self._bindings.get(module, {}))
        resolved = self._resolve(node, scope)
        return resolved if resolved in self._classes else None


def _self_assignment(node: ast.AST) -> tuple[str | None, ast.expr | None]:
    target: ast.expr | None = None
    value: ast.expr | None = None
    if isinstance(node, ast.Assign):
        target, value = node.targets[0], node.value
    elif isinstance(node, ast.AnnAssign):
        target, value = node.target, node.value
    if (
        isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
    ):
        return target.attr, value
    return None, None


def _outside_functions(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the statements of a module, those under `if` and `try` included."""
    waiting: deque[ast.AST] = deque(tree.body)
    while waiting:
        node = waiting.popleft()
        yield node
        if not isinstance(node, Function | ast.ClassDef):
            waiting.extend(child for child in ast.iter_child_nodes(node))


def _in_order(function: Function) -> Iterator[ast.AST]:
    for statement in function.body:
        yield from _depth_first(statement)


def _depth_first(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _depth_first(child)


def _without_annotations(function: Function) -> Iterator[ast.AST]:
    """Yield the nodes of a function's body but not of annotations, `except` and decorators."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, Function):
            waiting += node.body
        elif isinstance(node, ast.AnnAssign):
            waiting += [node.target, *([node.value] if node.value is not None else [])]
        elif isinstance(node, ast.ExceptHandler):
            waiting += node.body
        else:
            waiting += ast.iter_child_nodes(node)
