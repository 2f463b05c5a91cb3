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
) -> Flow[..., Any]:
    """Make a flow whose parameters are a request's fields; `run` takes their values.

    module: the module of the flow, by which Prefect finds it; first: fields that come before all others; kinds: types
    in place of the request's.
    """
    fields = {name: request.model_fields[name] for name in [*first, *request.model_fields]}

    def start(**given: Any) -> Any:
        try:
            return run(given)
        except NightjarError as error:  # raising it would log a traceback
            return Failed(message=f"{type(error).__name__}: {error}")
        except OSError as error:  # as on the command line
            return Failed(message=f"StoreBroken: {error}; fix it and press Retry")

    parameters = []
    for field, info in fields.items():
        kind: Any = kinds.get(field, info.annotation)
        for limit in info.metadata:
            kind = Annotated[kind, limit]
        parameters.append(
            inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=info.default, annotation=kind)
        )
    start.__name__ = start.__qualname__ = name
    start.__module__ = module
    # Prefect derives the form from the signature, and the descriptions from the docstring.
    vars(start)["__signature__"] = inspect.Signature(parameters)
    described = "".join(f"    {field}: {info.description}\n" for field, info in fields.items())
    start.__doc__ = f"{request.__doc__}\n\nArgs:\n{described}"
    return flow(name=name, description=request.__doc__, flow_run_name=flow_run_name)(start)


def make_request(request: type[BaseModel], given: Mapping[str, Any]) -> Any:
    """Make a request from the values of a form; raises BadOptions."""
    try:
        return request(**{name: value for name, value in given.items() if value not in (None, "")})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise BadOptions(f"{field} {first['input']}: {first['msg']}; the form describes {field}") from error
