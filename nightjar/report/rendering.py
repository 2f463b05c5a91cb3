"""Rendering of templates: files in templates/, every value escaped, a missing name an error."""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


def environment(*folders: Path) -> jinja2.Environment:
    """Make a template environment that searches `folders` before the report's own templates."""
    made = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
    )
    made.filters |= {"fixed": fixed, "signed": signed}
    return made


def fixed(value: float | None, digits: int) -> str:
    """Write a number with `digits` decimals, – for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """Write a number of points with its sign and two decimals, – for None."""
    return "–" if value is None else f"{value:+.2f}"


ENVIRONMENT = environment()


def render(name: str, **values: Any) -> Markup:
    """Render a template of the report."""
    return Markup(ENVIRONMENT.get_template(name).render(**values))
