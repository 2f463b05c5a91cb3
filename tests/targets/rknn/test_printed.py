"""What rknn_model_zoo's demo prints."""

from targets.rknn.printed import parse

OUTPUT = """-- read_audio & convert_channels & resample_audio use: 2.531000 ms
model input num: 1, output num: 1
  index=0, name=x, n_dims=3, dims=[1, 80, 2000], n_elems=160000, size=320000, fmt=UNDEFINED, type=FP16
-- inference_encoder_model use: 812.304000 ms

Whisper output:  Mr. Quilter is the apostle of the middle classes.

Real Time Factor (RTF): 1.264 / 5.860 = 0.216
"""


def test_text_and_times_are_read() -> None:
    said = parse(OUTPUT)
    assert said is not None
    assert said.text == "Mr. Quilter is the apostle of the middle classes."
    assert (said.seconds, said.audio_s) == (1.264, 5.86)


def test_an_empty_text_is_a_text() -> None:
    said = parse(OUTPUT.replace("  Mr. Quilter is the apostle of the middle classes.", ""))
    assert said is not None
    assert said.text == ""
    assert said.seconds == 1.264


def test_times_may_be_missing_and_text_may_not() -> None:
    said = parse("Whisper output: hello\n")
    assert said is not None
    assert said.seconds is None
    assert parse("rknn_init fail! ret=-6\n") is None
