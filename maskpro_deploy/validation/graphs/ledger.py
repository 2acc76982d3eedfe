"""The ledger of a graph: every stored tensor, and what was made of it in each of its uses."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from onnx import TensorProto

from maskpro_deploy.onnx_graphs.constants import external_entries, tensor_bytes
from maskpro_deploy.validation.graphs.values import is_table
from maskpro_deploy.validation.source import Rule, Stored, Unchecked

# of several uses, the one that is reported
_ORDER = (
    Rule.TOKEN_TABLE,
    Rule.POSITIONS,
    Rule.ELEMENTWISE,
    Rule.QUANTISATION,
    Rule.VECTOR,
    Rule.NARROW,
    Rule.BOOLEAN,
    Rule.INDEX,
)
_SHOWN = 3  # consumers that are named


@dataclass(slots=True)
class _Entry:
    """One stored tensor: what it is, and what happened to it."""

    name: str
    shape: tuple[int, ...]
    bytes: int
    default: Rule
    table: bool
    place: tuple[str, int] | None = None
    consumer: str = ""
    rules: set[Rule] = field(default_factory=set)
    weighed: bool = False
    refusals: dict[str, list[str]] = field(default_factory=dict)  # reason -> consumers


class Ledger:
    """Stored tensors by key; a key is the tensor's name, made unique where several scopes use it."""

    def __init__(self) -> None:
        self.touched: set[str] = set()  # keys that the present node accounted for
        self._entries: dict[str, _Entry] = {}
        self._keys: dict[tuple[object, ...], str] = {}
        self._spans: dict[tuple[str, int], int] = {}
        self._nodes: dict[str, str] = {}

    def enter(self, tensor: TensorProto, name: str, scope: tuple[object, ...]) -> str:
        """Enter a tensor once, and return its key."""
        place = (*scope, name)
        if place not in self._keys:
            shape = tuple(tensor.dims)
            span = _find_place(tensor)
            size = tensor_bytes(tensor)
            if span is not None:  # further names of the same bytes add only what reaches beyond
                counted = self._spans.get(span, 0)
                self._spans[span] = max(counted, size)
                size = max(0, size - counted)
            key = self._add(name, shape, size, _default_rule(tensor.data_type), is_table(shape))
            self._entries[key].place = span
            self._keys[place] = key
        return self._keys[place]

    def enter_bytes(self, name: str, shape: tuple[int, ...], size: int, scope: tuple[object, ...]) -> str:
        """Enter data that is not a tensor of its own: an attribute, a sparse tensor, a random one."""
        place = (*scope, name)
        if place not in self._keys:
            self._keys[place] = self._add(name, shape, size, Rule.VECTOR, table=True)
        return self._keys[place]

    def exempt(self, keys: Iterable[str], rule: Rule) -> None:
        """Note a use that needs no proof."""
        for key in keys:
            self._entries[key].rules.add(rule)
            self.touched.add(key)

    def weigh(self, keys: Iterable[str]) -> None:
        """Note that a weight that is checked is made of these."""
        for key in keys:
            self._entries[key].weighed = True
            self.touched.add(key)

    def refuse(self, keys: Iterable[str], reason: str, consumer: str) -> int:
        """Note a use that is not understood, of the tables among some tensors; returns their elements."""
        keys = list(keys)
        self.touched.update(keys)
        tables = [key for key in keys if self._entries[key].table] or keys
        for key in tables:
            users = self._entries[key].refusals.setdefault(reason, [])
            if consumer not in users:
                users.append(consumer)
        return sum(math.prod(self._entries[key].shape) for key in tables)

    def refuse_node(self, title: str, reason: str) -> None:
        """Note a node that may hold weights which are not in the graph."""
        self._nodes[title] = reason

    def tables(self, keys: Iterable[str]) -> list[str]:
        return [key for key in keys if self._entries[key].table]

    def holds_table(self, keys: Iterable[str]) -> bool:
        return any(self._entries[key].table for key in keys)

    def elements(self, keys: Iterable[str]) -> int:
        return sum(math.prod(self._entries[key].shape) for key in keys)

    def consume(self, keys: Iterable[str], consumer: str) -> None:
        """Note that a node uses some tensors, whatever it makes of them."""
        for key in keys:
            self._entries[key].consumer = self._entries[key].consumer or consumer

    def token_rows(self) -> int:
        """Rows of the longest table that tokens are looked up in; 0 if there is none."""
        return max((e.shape[0] for e in self._entries.values() if Rule.TOKEN_TABLE in e.rules and e.shape), default=0)

    @property
    def stored(self) -> tuple[Stored, ...]:
        """All tensors, with what exempts them."""
        return tuple(
            Stored(name=key, shape=e.shape, bytes=e.bytes, rule=_choose_rule(e), elements=math.prod(e.shape), place=e.place)
            for key, e in self._entries.items()
        )

    @property
    def unchecked(self) -> tuple[Unchecked, ...]:
        """All that is unaccounted for, each with its first reason and its consumers."""
        tensors = [
            Unchecked(name=key, shape=e.shape, reason=reason, consumers=tuple(users[:_SHOWN]), bytes=e.bytes)
            for key, e in self._entries.items()
            for reason, users in (list(e.refusals.items()) or _loose_end(e))[:1]
        ]
        return (*tensors, *(Unchecked(name=title, shape=(), reason=reason) for title, reason in self._nodes.items()))

    def _add(self, name: str, shape: tuple[int, ...], size: int, default: Rule, table: bool) -> str:
        key, number = name, 1
        while key in self._entries:
            number += 1
            key = f"{name}#{number}"
        self._entries[key] = _Entry(name, shape, size, default, table)
        return key


def _find_place(tensor: TensorProto) -> tuple[str, int] | None:
    """File and first byte of a tensor in external data."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    entries = external_entries(tensor)
    offset = entries.get("offset", "0")
    return entries.get("location", ""), int(offset) if offset.isdecimal() and len(offset) < 20 else 0


_INTEGERS = {value for name, value in TensorProto.DataType.items() if re.fullmatch(r"U?INT(8|16|32|64)|STRING", name)}


def _default_rule(data_type: int) -> Rule:
    if data_type == TensorProto.BOOL:
        return Rule.BOOLEAN
    return Rule.INDEX if data_type in _INTEGERS else Rule.VECTOR


def _loose_end(entry: _Entry) -> list[tuple[str, list[str]]]:
    """Why a table that is used, and of which nothing else is known, is unaccounted for."""
    if entry.table and entry.consumer and not entry.rules and not entry.weighed and entry.default is not Rule.BOOLEAN:
        return [("it is used, and what becomes of it is not known", [entry.consumer])]
    return []


def _choose_rule(entry: _Entry) -> Rule | None:
    if entry.refusals or _loose_end(entry):
        return None
    if entry.weighed and Rule.HEAD not in entry.rules:
        return None
    if Rule.HEAD in entry.rules:
        return Rule.HEAD
    if not entry.table or entry.default is Rule.BOOLEAN:
        return entry.default if entry.consumer or entry.rules else Rule.UNUSED
    return next((rule for rule in _ORDER if rule in entry.rules), Rule.UNUSED)
