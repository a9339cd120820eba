"""YAML as people expect it: the core schema of YAML 1.2, and nothing that can surprise or exhaust.

PyYAML reads YAML 1.1, where ``no`` is a boolean, ``010`` is eight, ``1:30`` is ninety and ``1e-9`` is text.
Here ``true`` and ``false`` are the only booleans, numbers are written as in JSON, dates stay text, and
aliases, tags, duplicate keys, deep nesting and large files are refused.
Source: YAML 1.2.2, chapter 10.3 (core schema), numbers as in RFC 8259.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from common.errors import one_line

MAX_BYTES = 1 << 20
MAX_DEPTH = 12
_DIGITS = 400  # longer whole numbers fit no field, and Python refuses to convert them from 4300 digits on


class StrictYamlError(ValueError):
    """What is wrong, in one line, with where: ``:3:7: not valid YAML: …; fix that line``."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def load(text: str) -> Any:
    """Plain data (dict, list, str, int, float, bool, None) from YAML or JSON text.

    Raises :class:`StrictYamlError`; its text starts with ``:line:column`` where these are known.
    """
    if len(text) > MAX_BYTES:
        raise StrictYamlError(f": longer than {MAX_BYTES >> 20} MiB; a study takes a few kilobytes")
    if text.lstrip()[:1] == "{":
        # JSON is not quite a subset of what PyYAML reads (U+2028, U+007F, pairs of surrogates)
        try:
            return _shallow(json.loads(text, object_pairs_hook=_pairs, parse_int=_whole, parse_constant=_constant))
        except (json.JSONDecodeError, RecursionError):
            pass  # YAML's flow style; its reader names the fault
    try:
        return yaml.load(text, _Loader)  # noqa: S506 -- a SafeLoader, made stricter
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = str(error.problem)
        if problem.startswith("but ") and error.context:
            problem = f"{error.context}, {problem}"
        raise StrictYamlError(f"{place}: not valid YAML: {problem}; fix that line") from None
    except yaml.YAMLError as error:
        raise StrictYamlError(f": not valid YAML: {' '.join(str(error).split())}; save it as plain UTF-8") from None


def _shallow(value: Any, depth: int = 1) -> Any:
    if depth > MAX_DEPTH:
        raise StrictYamlError(f": nested more than {MAX_DEPTH} levels deep; flatten it")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _shallow(child, depth + 1)
    return value


def _pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in items:
        if key in result:
            raise StrictYamlError(f": key {key!r} is given twice; keep one")
        result[key] = value
    return result


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise StrictYamlError(f": a number of {len(digits)} digits is too long; shorten it")
    return int(digits)


def _constant(name: str) -> float:
    raise StrictYamlError(f": {name} is not a number that a study can hold; give a finite one")


class _Loader(yaml.SafeLoader):
    """A safe loader with YAML 1.2's plain scalars and none of YAML's machinery."""

    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 -- PyYAML's own attribute
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _fault("aliases (*name) are not allowed, write the value out", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _fault(f"tags ({event.tag}) are not allowed, put text in quotes instead", event.start_mark)
        if self._depth >= MAX_DEPTH:
            raise _fault(f"nested more than {MAX_DEPTH} levels deep", event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise _fault("a key must be plain text, put it in quotes", key_node.start_mark)
            if str(key) in result:
                raise _fault(f"key {str(key)!r} is given twice", key_node.start_mark)
            result[str(key)] = self.construct_object(value_node, deep=deep)
        return result

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > _DIGITS:
            raise _fault(f"a number of {len(node.value)} digits is too long", node.start_mark)
        return int(node.value)


def _fault(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _kind, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    # a leading zero or plus makes text: a label "007" is not 7
    ("int", r"(?:0|-?[1-9][0-9]*)", list("-0123456789")),
    ("float", r"(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|-?\.[0-9]+(?:[eE][-+]?[0-9]+)?"
     r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))", list("-+.0123456789")),
):  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern + r"\Z"), _first)
