"""What a request may say of a target's own options, and what refuses it in one line."""

import pytest

from nightjar.errors import BadOptions
from nightjar.plugins.registry import plugin
from nightjar.plugins.target import make_options, traits_of
from nightjar.quantization.npu_traits import NpuTraits


def test_options_are_read_by_the_kind_that_the_target_declares() -> None:
    target = plugin("targets", "rknn")
    chosen = ("soc=rk3576", "samples=7", "memory_gib=1.5", "float_rules=no")
    options = make_options(target, "int8", ("encoder:*mlp*",), chosen).model_dump()
    assert options["precision"] == "int8"
    assert (options["soc"], options["samples"], options["memory_gib"]) == ("rk3576", 7, 1.5)
    assert options["float_rules"] is False
    assert options["float_nodes"] == ("encoder:*mlp*",)
    assert make_options(target, "fp") == target.load().Options()


@pytest.mark.parametrize(
    ("target", "chosen", "said"),
    [
        ("rknn", "sock=rk3588", r"takes no --target-options 'sock=rk3588': give NAME=VALUE with a NAME of .*\bsoc\b"),
        ("rknn", "soc", "takes no --target-options 'soc'"),
        ("rknn", "precision=fp", "takes no --target-options 'precision=fp'"),
        (
            "rknn",
            "soc=rk1",
            r"target rknn is not built with soc rk1: .*'rk3588'.*; its README.md lists what is allowed",
        ),
        ("rknn", "samples=0", "built with samples 0: .*greater than or equal to 1"),
        ("rknn", "samples=many", "built with samples many: .*integer"),
        ("torchscript", "a=b", "none: remove it"),
    ],
)
def test_what_a_target_does_not_take_is_said_in_one_line(target: str, chosen: str, said: str) -> None:
    with pytest.raises(BadOptions, match=said) as caught:
        make_options(plugin("targets", target), "fp", (), (chosen,))
    assert "\n" not in str(caught.value)


def test_a_precision_that_a_target_has_not_is_named_as_the_flag() -> None:
    with pytest.raises(BadOptions, match="target onnx does not build --precision auto"):
        make_options(plugin("targets", "onnx"), "auto")


def test_a_target_gives_the_facts_of_its_npu_and_others_have_the_defaults() -> None:
    assert traits_of(plugin("targets", "rknn")) is plugin("targets", "rknn").load().TRAITS
    assert traits_of(plugin("targets", "onnx")) == NpuTraits()
