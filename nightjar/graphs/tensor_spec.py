"""Name, shape and dtype of a part's tensor."""

from pydantic import BaseModel


class TensorSpec(BaseModel, frozen=True):
    """One input or output of a part as model.json has it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def label(self) -> str:
        """Return name, shape and dtype for a message."""
        return f"{self.name} ({', '.join(map(str, self.shape))}) {self.dtype}"
