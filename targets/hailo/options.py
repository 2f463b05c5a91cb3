"""Name and options of the target."""

from typing import Literal

from pydantic import BaseModel, Field

from nightjar.plugins.target_build import FloatNodes

NAME = "hailo"

Part = Literal["encoder", "cross", "decoder"]


class PlacementOptions(BaseModel, frozen=True):
    """Options of the DFC and its stand-in: where parts run, and which layers have 16 bits."""

    npu: tuple[Part, ...] = Field(
        ("encoder",), min_length=1, description="parts on the NPU; the others run on the board's CPU, in float"
    )
    residuals_16bit: bool = Field(True, description="int8: residual sums in a16_w16, as in all public conversions")
    attention_16bit: bool = Field(
        False, description="allow a16_w16 for attention's products and softmax, which the DFC is reported to refuse"
    )
    float_nodes: FloatNodes = Field(
        (), description="int8: more nodes in a16_w16, `part:glob` of the ONNX graph, such as encoder:/blocks.3/*"
    )


class Options(PlacementOptions, frozen=True):
    """How graphs become .hef files; README.md says where each default comes from."""

    precision: Literal["fp", "int8", "auto"] = Field(
        "fp", description="float, in the emulator only; a8_w8; or auto: a16_w16 where a plan says so"
    )
    hw_arch: Literal["hailo8l", "hailo8", "hailo8r"] = Field("hailo8l", description="the chip to compile for")
    optimization_level: int = Field(
        2, ge=0, le=4, description="level requested of the DFC, which lowers it without a GPU or with few samples"
    )
    compression_level: int = Field(0, ge=0, le=5, description="above 0, the DFC stores weights in 4 bits")
    calibration_samples: int = Field(1024, ge=1, description="samples, at most; below 1024 the DFC may lower the level")
    calibration_batch: int = Field(8, ge=1, description="samples at once; 2 where the GPU runs out of memory")
    finetune_epochs: int = Field(0, ge=0, description="epochs of fine-tuning; 0: as the level says")
    finetune_learning_rate: float = Field(1e-5, gt=0, description="learning rate of fine-tuning, where there is any")
    noise_analysis: Literal["off", "checker", "advanced"] = Field(
        "off", description="the DFC's layer noise analysis after optimizing, which needs much memory"
    )
    layer_norm_decomposition: bool = Field(False, description="let the DFC decompose norms when it optimizes")
    value_by_one: bool = Field(True, description="multiply attention's values by 1.0 for the parser, as hailo-whisper")
    compiler_effort: Literal["default", "max"] = Field("default", description="max: hours for a faster placement")
    max_utilization: tuple[float, ...] = Field(
        (0.8, 0.7), description="shares of the chip's resources, tried in order where the default does not fit"
    )
    memory_gib: float = Field(0, ge=0, description="memory limit of the DFC and its workers; 0: 90 % of this machine's")
    hours: float = Field(24, gt=0, description="time limit of one step of the DFC")
