"""Reads YAML with the scalars of YAML 1.2, and refuses keys that are given twice.

PyYAML alone reads YAML 1.1, in which `5e-5` is text, `no` is false, `12:30` is 750 and `010` is 8, and it
silently takes the last of two equal keys.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

# A few lines of YAML anchors can expand to more values than fit in memory.
MOST_VALUES = 1_000_000


class _Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2 (section 10.3.2)."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  (PyYAML's own name and place)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[Any, Any] = {}
        for key_node, _ in node.value:
            # Keys that are no scalars are refused below, and `<<`, which merges a mapping, is no key.
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "<<"
            if key != "<<" and key in first:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice, first in line {first[key]}; remove one",
                    key_node.start_mark,
                )  # fmt: skip
            first[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("merge", r"<<", ["<"]),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )


def _whole_number(loader: yaml.SafeLoader, node: Any) -> int:
    return int(loader.construct_scalar(node), 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def read_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: the text is not valid, gives a key twice, has a part that holds itself, or expands to
        far
            more values than any study has.
    """
    try:
        # The loader is a SafeLoader: it makes plain values only.
        value = yaml.load(text, Loader=_Loader)
        values = _count(value, {})
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply, or a part holds itself") from error
    if values > MOST_VALUES:
        raise yaml.YAMLError(f"its anchors expand to more than {MOST_VALUES} values")
    return value


def _count(value: Any, known: dict[int, int]) -> int:
    """The number of values after all aliases are expanded."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(each, known) for each in inner)
    return known[id(value)]
