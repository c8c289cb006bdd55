"""Routes compiled once in each process of tests.

werkzeug writes and compiles a function for every rule whenever an app is made: 0.1 s for the
controller's, paid again by each of a thousand tests. It depends on the rule's text alone.
"""

from typing import Any

from werkzeug.routing import Rule

_compile: Any = Rule._compile_builder
_compiled: dict[tuple[object, ...], Any] = {}


def keep() -> None:
    """Compile each rule once from now on."""
    setattr(Rule, "_compile_builder", _compile_once)  # noqa: B010 - mypy knows it by another type


def _compile_once(rule: Any, append_unknown: bool = True) -> Any:
    key = (rule.rule, repr(rule.defaults), repr(rule._trace), append_unknown)
    if key not in _compiled:
        _compiled[key] = _compile(rule, append_unknown)
    return _compiled[key]
