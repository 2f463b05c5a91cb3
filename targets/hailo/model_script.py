"""Write the model script (.alls) of a part, in the commands of hailocs/hailo-whisper and hailo_model_zoo."""

from collections.abc import Collection, Sequence

from targets.hailo.layers import Layer
from targets.hailo.options import Options

CHECKER = {
    "off": "disabled",
    "checker": "enabled, batch_size=1",
    "advanced": "enabled, batch_size=1, analyze_mode=advanced",
}


def optimization_script(
    layers: Sequence[Layer], in_16bit: Collection[Layer], samples: int, options: Options, *, keep_dead: bool = False
) -> str:
    """Write the commands of `ClientRunner.optimize`.

    in_16bit: layers in a16_w16; samples: number of calibration samples; keep_dead: do not remove unused layers.
    """
    kinds = {layer.kind for layer in layers}  # scripts name kinds: layer numbers differ with the graph and the version
    level, bits = options.optimization_level, options.compression_level
    lines = [
        f"model_optimization_flavor(optimization_level={level}, compression_level={bits})",
        f"model_optimization_config(calibration, batch_size={options.calibration_batch}, calibset_size={samples})",
        f"model_optimization_config(checker_cfg, policy={CHECKER[options.noise_analysis]})",
    ]
    if "ew_add" in kinds:
        lines.append("pre_quantization_optimization(ew_add_fusing, policy=disabled)")
    if "matmul" in kinds:
        lines += [
            "pre_quantization_optimization(matmul_correction, layers={matmul*}, correction_type=zp_comp_block)",
            "pre_quantization_optimization(matmul_equalization, layers={matmul*}, matmul_bias=enabled)",
        ]
    if "layer_normalization" in kinds and options.layer_norm_decomposition:
        mode = "bit_decomposition_mode=uniform_precision, equalization=disabled"
        lines.append(f"pre_quantization_optimization(layer_norm_decomposition, {mode})")
    if keep_dead:
        lines.append("pre_quantization_optimization(dead_layers_removal, policy=disabled)")
    if options.finetune_epochs:
        rate = f"epochs={options.finetune_epochs}, learning_rate={options.finetune_learning_rate:.10f}".rstrip("0")
        size = f"dataset_size={samples}, {rate}, batch_size={options.calibration_batch}"
        lines.append(f"post_quantization_optimization(finetune, policy=enabled, {size})")
    lines += [f"quantization_param({layer.own_name}, precision_mode=a16_w16)" for layer in in_16bit]
    if options.compiler_effort == "max":
        lines.append("performance_param(compiler_optimization_level=max, optimize_for_batch=1)")
    return "\n".join(lines) + "\n"


def allocation_script(max_utilization: float) -> str:
    """Write the command that makes the compiler use less of the chip, where it finds no placement."""
    return f"resources_param(max_utilization={max_utilization:g})\n"
