"""Which names of a library an adapter's source uses, found by following its values through the source.

The source is interpreted abstractly against a *description* of one version of the library (its classes, members and signatures).
`hasattr` is answered from the description, so that each version is followed along the very branches that run with it. A value
that comes out of the library and whose class cannot be told is reported: nothing escapes unseen.

A description is plain JSON: {"members": {name: class or ""}, "classes": {class: {member: docstring}}}.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Any

# kinds of abstract values: ("module",), ("class", C), ("object", C), ("method", C, name), ("list", value), ("words", tuple),
# ("lost", why) for what the library gives and cannot be told; None for everything that is not the library's
Value = tuple[Any, ...] | None
PLAIN = {
    "bool",
    "int",
    "float",
    "str",
    "bytes",
    "buffer",
    "object",
    "None",
    "list",
    "dict",
    "tuple",
    "capsule",
    "Dims",
    "numpy.ndarray",
}


@dataclass
class Uses:
    """What was found: every entry is (class or "", name)."""

    used: set[tuple[str, str]] = field(default_factory=set)
    asked: set[tuple[str, str]] = field(default_factory=set)  # by hasattr, or getattr with a default
    absent: set[tuple[str, str]] = field(default_factory=set)
    misfits: set[str] = field(default_factory=set)  # calls that no signature takes
    lost: set[str] = field(default_factory=set)


class Interpreter(ast.NodeVisitor):
    """Follows one module against one description; `uses` holds what was found."""

    def __init__(self, source: str, description: dict[str, Any]) -> None:
        self.api = description
        self.uses = Uses()
        self.functions: dict[str, ast.FunctionDef] = {}  # "function" or "Class.method"
        self.fields: dict[tuple[str, str], Value] = {}  # (class, NAME in self.NAME) -> value
        self.known: dict[str, dict[str, Value]] = {}  # function -> values of its parameters
        self.results: dict[str, Value] = {}
        tree = ast.parse(source)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                self.functions[node.name] = node
            elif isinstance(node, ast.ClassDef):
                self.functions |= {f"{node.name}.{f.name}": f for f in node.body if isinstance(f, ast.FunctionDef)}
        for _ in range(8):  # values reach callees and fields in some rounds; findings only grow
            for name, function in self.functions.items():
                self.env: dict[str, Value] = dict(self.known.get(name, {}))
                self.name, self.owner = name, name.partition(".")[0]
                self.run(function.body)

    # -- statements

    def run(self, body: list[ast.stmt]) -> bool:
        """Follow statements; False if the end is never reached."""
        return all(self.step(statement) for statement in body)

    def step(self, node: ast.stmt) -> bool:
        if isinstance(node, ast.If):
            condition = self.truth(node.test)
            reached = []
            if condition is not False:
                reached.append(self.run(node.body))
            if condition is not True:
                reached.append(self.run(node.orelse))
            return any(reached)
        if isinstance(node, ast.Return):
            value = self.value(node.value) if node.value is not None else None
            self.results[self.name] = self.results.get(self.name) or value
            return False
        if isinstance(node, ast.Raise):
            self.value(node.exc) if node.exc is not None else None
            return False
        if isinstance(node, ast.Assign | ast.AnnAssign):
            value = self.value(node.value) if node.value is not None else None
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                self.bind(target, value, node.value)
            return True
        if isinstance(node, ast.For):
            self.bind(node.target, self.element(self.value(node.iter), node.iter), None)
            self.run(node.body)
            return True
        if isinstance(node, ast.Try):
            self.run(node.body)
            for handler in node.handlers:
                self.run(handler.body)
            self.run([*node.orelse, *node.finalbody])
            return True
        if isinstance(node, ast.With | ast.While):
            for item in getattr(node, "items", []):
                self.value(item.context_expr)
            return self.run(node.body) or isinstance(node, ast.While)
        if isinstance(node, ast.ClassDef):
            self.subclass(node)
            return True
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child)
        return True

    def bind(self, target: ast.expr, value: Value, source: ast.expr | None) -> None:
        if isinstance(target, ast.Name):
            self.env[target.id] = value
        elif isinstance(target, ast.Tuple):
            parts = [self.value(e) for e in source.elts] if isinstance(source, ast.Tuple) else [None] * len(target.elts)
            for part, inner in zip(target.elts, parts, strict=True):
                self.bind(part, inner, None)
        elif isinstance(target, ast.Attribute):
            if isinstance(target.value, ast.Name) and target.value.id == "self":
                key = (self.owner, target.attr)
                self.fields[key] = self.fields.get(key) or value
            else:
                self.member(self.value(target.value), target.attr, target)

    def subclass(self, node: ast.ClassDef) -> None:
        """A class made inside a function: what it overrides has to be there."""
        bases = [self.value(base) for base in node.bases]
        base = next((b for b in bases if b is not None and b[0] == "class"), None)
        for method in (f for f in node.body if isinstance(f, ast.FunctionDef)):
            if base is not None:
                self.member(base, method.name, node)
            env, name, owner = dict(self.env), self.name, self.owner
            self.name, self.owner = f"{node.name}.{method.name}", node.name
            self.run(method.body)
            self.env, self.name, self.owner = env, name, owner
        self.env[node.name] = ("class", base[1]) if base is not None else None

    # -- expressions

    def value(self, node: ast.expr) -> Value:
        if isinstance(node, ast.NamedExpr):
            value = self.value(node.value)
            self.bind(node.target, value, None)
            return value
        if isinstance(node, ast.DictComp | ast.SetComp):
            self.uses.lost.add(f"{ast.unparse(node)}: not followed")
        if isinstance(node, ast.Name):
            return self.env.get(node.id)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                return self.fields.get((self.owner, node.attr))
            return self.member(self.value(node.value), node.attr, node)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.ListComp | ast.GeneratorExp):
            return self.comprehension(node)
        if isinstance(node, ast.Subscript):
            value = self.value(node.value)
            return value if isinstance(node.slice, ast.Slice) else self.element(value, node.value)
        if isinstance(node, ast.IfExp):
            condition = self.truth(node.test)
            first = self.value(node.body) if condition is not False else None
            second = self.value(node.orelse) if condition is not True else None
            return first or second
        if isinstance(node, ast.BoolOp | ast.Compare) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)):
            self.truth(node)
            return None
        if isinstance(node, ast.Tuple | ast.List) and node.elts:
            constants = [e.value for e in node.elts if isinstance(e, ast.Constant)]
            if len(constants) == len(node.elts):
                return ("words", tuple(constants))
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child)
            elif isinstance(child, ast.FormattedValue):
                self.value(child.value)
        return None

    def comprehension(self, node: ast.ListComp | ast.GeneratorExp) -> Value:
        outer = dict(self.env)
        (generator,) = node.generators
        items = self.value(generator.iter)
        # words are followed one by one, so that a condition on one says nothing about another
        choices = [("words", (word,)) for word in items[1]] if items is not None and items[0] == "words" else [None]
        result = None
        for choice in choices:
            self.bind(generator.target, choice or self.element(items, generator.iter), None)
            if all(self.truth(condition) is not False for condition in generator.ifs):
                result = result or self.value(node.elt)
        self.env = outer
        return ("list", result) if result is not None else None

    def truth(self, node: ast.expr) -> bool | None:
        """True or False where the description decides, else None."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.truth(node.operand)
            return None if inner is None else not inner
        if isinstance(node, ast.BoolOp):
            decides = isinstance(node.op, ast.Or)
            found: list[bool | None] = []
            for part in node.values:  # as Python does, nothing behind the deciding part is looked at
                found.append(self.truth(part))
                if found[-1] is decides:
                    return decides
            return None if None in found else not decides
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
            return self.ask(node)
        if isinstance(node, ast.Compare):
            for part in (node.left, *node.comparators):
                self.value(part)
            return None
        self.value(node)
        return None

    def ask(self, node: ast.Call) -> bool | None:
        value, names = self.value(node.args[0]), self.words(node.args[1])
        answers = {self.has(value, name, asked=True) for name in names}
        return answers.pop() if len(answers) == 1 else None

    def words(self, node: ast.expr) -> tuple[str, ...]:
        if isinstance(node, ast.Constant):
            return (str(node.value),)
        value = self.value(node)
        return value[1] if value is not None and value[0] == "words" else ()

    def element(self, value: Value, node: ast.expr) -> Value:
        if value is None or value[0] == "words":
            return value
        return value[1] if value[0] == "list" else ("lost", f"{ast.unparse(node)} is iterated")

    # -- the library

    def has(self, value: Value, name: str, *, asked: bool = False) -> bool | None:
        if value is None or value[0] not in ("module", "class", "object"):
            if value is not None:
                self.uses.lost.add(f"hasattr(..., {name!r}) of {value}")
            return None
        owner = "" if value[0] == "module" else value[1]
        if asked:
            self.uses.asked.add((owner, name))
        return name in (self.api["members"] if owner == "" else self.api["classes"][owner])

    def member(self, value: Value, name: str, node: ast.AST) -> Value:
        if value is None:
            return None
        if value[0] not in ("module", "class", "object"):
            self.uses.lost.add(f"{ast.unparse(node)}: {value}")
            return None
        owner = "" if value[0] == "module" else value[1]
        self.uses.used.add((owner, name))
        if not self.has(value, name):
            self.uses.absent.add((owner, name))
            return None
        if owner == "":
            kind = self.api["members"][name]
            return ("class", name) if kind == "class" else None
        doc = self.api["classes"][owner][name]
        return ("method", owner, name) if doc is not None else None

    def call(self, node: ast.Call) -> Value:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "import_module":
            return ("module",)
        if name == "hasattr":
            self.ask(node)
            return None
        if name == "getattr":
            return self.get(node)
        arguments = [self.value(a) for a in node.args]
        keywords = {k.arg or "**": self.value(k.value) for k in node.keywords}
        own = self.own(node.func)
        if own is not None:
            parameters = [a.arg for a in self.functions[own].args.args if a.arg != "self"]
            known = self.known.setdefault(own, {})
            for parameter, value in [*zip(parameters, arguments, strict=False), *keywords.items()]:
                known[parameter] = known.get(parameter) or value
            return self.results.get(own)
        function = self.value(node.func)
        if function is None:
            return None
        if function[0] == "class":
            self.fit(function[1], "__init__", node)
            return ("object", function[1])
        if function[0] != "method":
            self.uses.lost.add(f"{ast.unparse(node)}: {function}")
            return None
        return self.result(function[1], function[2], node)

    def own(self, function: ast.expr) -> str | None:
        """The module's own function or method that is called; for one of its classes, what makes an object of it."""
        if isinstance(function, ast.Name) and function.id in self.functions:
            return function.id
        if isinstance(function, ast.Name) and f"{function.id}.__init__" in self.functions:
            return f"{function.id}.__init__"
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "self":
            name = f"{self.owner}.{function.attr}"
            return name if name in self.functions else None
        return None

    def get(self, node: ast.Call) -> Value:
        value, names = self.value(node.args[0]), self.words(node.args[1])
        found = None
        for name in names:
            if len(node.args) > 2 and not self.has(value, name, asked=True):
                continue
            found = found or self.member(value, name, node)
        return found

    def result(self, owner: str, name: str, node: ast.Call) -> Value:
        self.fit(owner, name, node)
        kinds = {s[1] for s in signatures(self.api["classes"][owner][name], name)}
        for kind in kinds:
            short = re.split(r"::|\.", kind)[-1]
            for known in (short, short.removeprefix("I")):  # some docstrings have the C++ name, IParserError for ParserError
                if known in self.api["classes"]:
                    return ("object", known)
            if not kinds <= PLAIN:
                return ("lost", f"{owner}.{name} gives {kind}")
        return None if kinds else ("lost", f"{owner}.{name} has no signature")

    def fit(self, owner: str, name: str, node: ast.Call) -> None:
        """Note a call that none of the signatures takes."""
        known = signatures(self.api["classes"][owner].get(name) or "", name)
        called = node.func
        unbound = isinstance(called, ast.Attribute) and called.attr == name and self.value(called.value) == ("class", owner)
        given = len(node.args) - (1 if unbound else 0)
        keywords = {k.arg for k in node.keywords}
        for parameters, _ in known:
            names = [p for p, _ in parameters]
            least = [p for p, default in parameters if not default]
            if given <= len(names) and keywords <= set(names[given:]) and set(least[given:]) <= keywords:
                return
        if known:
            self.uses.misfits.add(f"{ast.unparse(node)} does not fit {owner}.{name}")


def signatures(doc: str, name: str) -> list[tuple[list[tuple[str, bool]], str]]:
    """The signatures in a docstring of pybind11: [([(parameter, has a default)], result)], without self."""
    found = []
    for match in re.finditer(rf"^(?:\d+\. )?{re.escape(name)}\((.*)\) -> (.+)$", doc, re.MULTILINE):
        parts, depth, start = [], 0, 0
        text = match[1]
        for i, letter in enumerate(f"{text},"):
            depth += (letter in "([{<") - (letter in ")]}>")
            if letter == "," and depth == 0:
                parts.append(text[start:i].strip())
                start = i + 1
        parameters = [(p.split(":")[0].strip(), "=" in p) for p in parts if p]
        found.append(([p for p in parameters if p[0] != "self"], match[2].strip()))
    return found


def follow(source: str, description: dict[str, Any]) -> Uses:
    """What the source uses of the library that is described."""
    return Interpreter(source, description).uses
