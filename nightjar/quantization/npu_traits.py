"""What a precision search must know of an NPU and its compiler; a target's folder gives it as `TRAITS`."""

from pydantic import BaseModel, Field


class NpuTraits(BaseModel, frozen=True):
    """Facts of one NPU; targets with the same facts share a ranking. The defaults were measured on RK3588."""

    integer_outputs: bool = Field(True, description="the outputs of a quantized part are int8 too")
    branch_bias_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of a split layer's bias that its branch gets; 0 leaves the branch a bias of zeros",
    )
    measured_loss_share: float = Field(
        0.3, gt=0, description="loss measured on the target per loss that the ranking expects; a search starts with it"
    )
