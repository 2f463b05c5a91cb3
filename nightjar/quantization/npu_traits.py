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
    integer_attention: bool = Field(
        False, description="products of two activations in int8 are worth it: attentions are split (softmax_split.py)"
    )
    weight_macs: float = Field(4, ge=0, description="multiply-accumulates that take as long as reading one weight")
    measured_loss_share: float = Field(
        0.3, gt=0, description="loss measured on the target per loss that the ranking expects; a search starts with it"
    )


DEFAULT_TRAITS = NpuTraits()
