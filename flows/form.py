"""Flows as people start them in the Prefect UI: the fields of a request side by side, as one form.

The request stays the one truth: names, descriptions, defaults and limits come from it. An explained failure ends a run
with its line as the state's message, and without a traceback.
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
    """Make a flow whose parameters are a request's fields; `run` gets what was filled in.

    module: where the flow stands, by which Prefect finds it; first: fields that come before all others; kinds: other
    types than the request's; extra: texts that the request has not, by name, with their descriptions.
    """
    fields = request.model_fields
    said = {field: fields[field].description for field in [*first, *fields]} | dict(extra)

    def start(**given: Any) -> Any:
        try:
            return run(given)
        except NightjarError as error:  # raised, it would be a traceback in the log of the run
            return Failed(message=f"{type(error).__name__}: {error}")
        except OSError as error:  # as the command line says it
            return Failed(message=f"StoreBroken: {error}; mend it and press Retry")

    parameters = []
    for field in said:
        kind: Any = kinds.get(field, fields[field].annotation if field in fields else str | None)
        for limit in fields[field].metadata if field in fields else ():
            kind = Annotated[kind, limit]
        default = fields[field].default if field in fields else None
        parameters.append(inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind))
    start.__name__ = start.__qualname__ = name
    start.__module__ = module
    # Prefect makes the form of the signature, and takes the fields' descriptions from the docstring.
    vars(start)["__signature__"] = inspect.Signature(parameters)
    start.__doc__ = f"{request.__doc__}\n\nArgs:\n" + "".join(f"    {field}: {said[field]}\n" for field in said)
    return flow(name=name, description=request.__doc__, flow_run_name=flow_run_name)(start)


def make_request(request: type[BaseModel], given: Mapping[str, Any]) -> Any:
    """Make a request of a filled-in form; raises BadOptions in one line."""
    try:
        return request(**{name: value for name, value in given.items() if value not in (None, "")})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise BadOptions(f"{field} {first['input']}: {first['msg']}; the form says what {field} may be") from error
