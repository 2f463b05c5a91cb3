"""What the target is called, and what a build of it takes."""

from typing import Literal

from pydantic import BaseModel, Field, field_validator

NAME = "hailo"


Part = Literal["encoder", "cross", "decoder"]


class Placed(BaseModel, frozen=True):
    """What the DFC's options and those of its stand-in have in common: where parts run, and which layers are wide."""

    npu: tuple[Part, ...] = Field(
        ("encoder",), min_length=1, description="parts on the NPU; the others run on the board's CPU, in float"
    )
    residuals_16bit: bool = Field(
        True, description="int8: residual sums in a16_w16, as every public conversion of Whisper has them"
    )
    attention_16bit: bool = Field(
        False, description="let attention's products and softmax be a16_w16 too, which the DFC is reported to refuse"
    )
    float_nodes: tuple[str, ...] = Field(
        (), description="int8: more nodes in a16_w16, `part:glob` over the ONNX graph's, such as encoder:/blocks.3/*"
    )

    @field_validator("float_nodes")
    @classmethod
    def _has_a_part(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            if not all(entry.partition(":")[::2]):
                raise ValueError(f"{entry!r} is not PART:GLOB")
        return entries


class Options(Placed, frozen=True):
    """How graphs become .hef files; README.md says where each default comes from."""

    precision: Literal["fp", "int8", "auto"] = Field(
        "fp",
        description="float, in the emulator alone; a8_w8; or auto: a16_w16 where a plan says so",
    )
    hw_arch: Literal["hailo8l", "hailo8", "hailo8r"] = Field("hailo8l", description="the chip to compile for")
    optimization_level: int = Field(
        2, ge=0, le=4, description="asked of the DFC, which goes lower by itself without a GPU or with few samples"
    )
    compression_level: int = Field(0, ge=0, le=5, description="above 0 the DFC puts weights in 4 bits")
    calibration_samples: int = Field(1024, ge=1, description="at most; below 1024 the DFC may lower the level")
    calibration_batch: int = Field(8, ge=1, description="samples at once; 2 where the GPU runs out of memory")
    finetune_epochs: int = Field(0, ge=0, description="0: as the level says")
    finetune_learning_rate: float = Field(1e-5, gt=0, description="of the fine-tuning, where epochs are given")
    noise_analysis: Literal["off", "checker", "advanced"] = Field(
        "off", description="the DFC's layer noise analysis after optimizing, which runs out of memory"
    )
    layer_norm_decomposition: bool = Field(False, description="let the DFC take norms apart when it optimizes")
    value_by_one: bool = Field(
        True, description="multiply attention's values by 1.0, as hailo-whisper does for the parser"
    )
    compiler_effort: Literal["default", "max"] = Field("default", description="max: hours for a faster placement")
    max_utilization: tuple[float, ...] = Field(
        (0.8, 0.7), description="of the chip's resources, tried one after the other where the default does not fit"
    )
    memory_gib: float = Field(
        0,
        ge=0,
        description="that the DFC and its workers may hold; 0: nine tenths of this machine's",
    )
    hours: float = Field(24, gt=0, description="that one step of the DFC may take")
