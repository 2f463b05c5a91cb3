"""Name, shape and dtype of a part's tensor."""

from pydantic import BaseModel


class Input(BaseModel, frozen=True):
    """One input of a part as model.json has it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
