"""Forms of the Prefect UI: a flow whose parameters are the fields of a request.

Names, descriptions, defaults and limits come from the request. A NightjarError ends the run with its line as the
state's message, and without a traceback.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from prefect import Flow, flow
from prefect.states import Failed
from pydantic import BaseModel, ValidationError

from nightjar.errors import BadOptions, NightjarError


def make_form(
    name: str,
    request: type[BaseModel],
    run: Callable[[dict[str, Any]], Any],
    module: str,
    flow_run_name: str | Callable[[], str],
    *,
    first: tuple[str, ...] = (),
    kinds: Mapping[str, Any] = {},
    extra: Mapping[str, str] = {},
) -> Flow[..., Any]:
    """Make a flow whose parameters are a request's fields; `run` takes their values.

    module: the module of the flow, by which Prefect finds it; first: fields that come before all others; kinds: types
    in place of the request's; extra: further text fields, by name, with their descriptions.
    """
    fields = request.model_fields
    descriptions = {field: fields[field].description for field in [*first, *fields]} | dict(extra)

    def start(**given: Any) -> Any:
        try:
            return run(given)
        except NightjarError as error:  # raising it would log a traceback
            return Failed(message=f"{type(error).__name__}: {error}")
        except OSError as error:  # as on the command line
            return Failed(message=f"StoreBroken: {error}; fix it and press Retry")

    parameters = []
    for field in descriptions:
        kind: Any = kinds.get(field, fields[field].annotation if field in fields else str | None)
        for limit in fields[field].metadata if field in fields else ():
            kind = Annotated[kind, limit]
        default = fields[field].default if field in fields else None
        parameters.append(inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind))
    start.__name__ = start.__qualname__ = name
    start.__module__ = module
    # Prefect derives the form from the signature, and the descriptions from the docstring.
    vars(start)["__signature__"] = inspect.Signature(parameters)
    start.__doc__ = f"{request.__doc__}\n\nArgs:\n" + "".join(
        f"    {field}: {descriptions[field]}\n" for field in descriptions
    )
    return flow(name=name, description=request.__doc__, flow_run_name=flow_run_name)(start)


def make_request(request: type[BaseModel], given: Mapping[str, Any]) -> Any:
    """Make a request from the values of a form; raises BadOptions."""
    try:
        return request(**{name: value for name, value in given.items() if value not in (None, "")})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise BadOptions(f"{field} {first['input']}: {first['msg']}; the form describes {field}") from error
