"""The templates of the HTML pages, which are beside this file, filled in with jinja2: every value is escaped."""

import functools
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from bdjax.reporting.glossary import parts

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def render(template: str, **values: Any) -> "Markup":
    """Fill in a template.

    Args:
      template: its file name.
      **values: what it reads; text is escaped, :class:`markupsafe.Markup` is taken as HTML.

    Raises:
      jinja2.UndefinedError: the template reads a value that is not given.
    """
    from markupsafe import Markup

    return Markup(_environment().get_template(template).render(values))


def verbatim(name: str) -> "Markup":
    """The text of a style sheet or a script, to stand in its element as it is."""
    from markupsafe import Markup

    return Markup(files("bdjax.reporting").joinpath(name).read_text(encoding="utf-8"))


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("bdjax.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["explained"] = parts
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return made
