"""The enumerations of the double."""

from enum import Enum


class States(Enum):
    UNINITIALIZED = "uninitialized"
    HAILO_MODEL = "hailo_model"
    FP_OPTIMIZED_MODEL = "fp_optimized_model"
    QUANTIZED_MODEL = "quantized_model"
    COMPILED_MODEL = "compiled_model"


class InferenceContext(Enum):
    SDK_NATIVE = "sdk_native"
    SDK_FP_OPTIMIZED = "sdk_fp_optimized"
    SDK_QUANTIZED = "sdk_quantized"
    SDK_BIT_EXACT = "sdk_bit_exact"
    SDK_HAILO_HW = "sdk_hailo_hw"


class CalibrationDataType(Enum):
    auto = "auto"
    np_array = "np_array"
    npy_dir = "npy_dir"


class Dims(Enum):
    BATCH = "batch"
    CHANNELS = "channels"
    HEIGHT = "height"
    WIDTH = "width"
