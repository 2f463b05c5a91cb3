"""A strict double of the Dataflow Compiler, for tests alone: it compiles nothing and no figure of it means anything.

Made from public code that calls the real one (hailocs/hailo-whisper, hailo_model_zoo, luxonis/modelconverter,
community.hailo.ai): names, argument names and order, states and their sequence, layouts. Whatever is not so raises.
It emulates with onnxruntime, so that what comes out is right, or as wrong as 8 bits make it.
"""

from hailo_sdk_client.client import ClientRunner
from hailo_sdk_client.exposed_definitions import CalibrationDataType, InferenceContext, States

__version__ = "3.33.1"
__all__ = ["CalibrationDataType", "ClientRunner", "InferenceContext", "States"]
