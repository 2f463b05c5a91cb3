"""Templates of the site's pages: their folder, filters and style."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from nightjar.report.rendering import environment
from nightjar.report.site.formatting import count, date_time, day, megabytes, short, short_dates
from nightjar.report.site.urls import cell_url, night_url

GENERATOR = '<meta name="generator" content="nightjar">'  # marks a page that may be overwritten
ENVIRONMENT = environment(Path(__file__).parent / "templates")
ENVIRONMENT.filters |= {f.__name__: f for f in (cell_url, date_time, day, megabytes, night_url, short, short_dates)}
ENVIRONMENT.globals |= {"count": count, "generator": Markup(GENERATOR)}


def render(name: str, **values: Any) -> Markup:
    """Render a template of the site."""
    return Markup(ENVIRONMENT.get_template(name).render(**values))
