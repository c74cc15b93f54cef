"""The pages' templates: all output is escaped, and a missing variable is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(name: str, filters: Mapping[str, Callable[..., str]] | None = None) -> Template:
    """A compiled template of this package. Compiling it takes longer than rendering it.

    Arguments:
        name: a file of this package.
        filters: functions that the template calls, by name.
    """
    environment = Environment(
        loader=PackageLoader("wsseg_ray", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(name)
