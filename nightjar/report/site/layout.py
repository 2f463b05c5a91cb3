"""Templates of the site's pages: their folder, filters and style."""

from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from nightjar.report.rendering import environment
from nightjar.report.site.formatting import count, date_time, day, megabytes, short, short_dates
from nightjar.report.site.urls import cell_url, night_url

GENERATOR = '<meta name="generator" content="nightjar">'  # marks a page that may be overwritten


def render(name: str, **values: Any) -> Markup:
    """Render a template of the site."""
    return Markup(_environment().get_template(name).render(**values))


@cache
def _environment() -> jinja2.Environment:
    made = environment(Path(__file__).parent / "templates")
    made.filters |= {f.__name__: f for f in (cell_url, date_time, day, megabytes, night_url, short, short_dates)}
    made.globals |= {"count": count, "generator": Markup(GENERATOR)}
    return made
