"""Read the output of rknn_model_zoo's demo: `rknn_whisper_demo encoder.rknn decoder.rknn en clip.wav > CLIPID.txt`."""

import re

from nightjar.plugins.program_output import ProgramOutput

WANTED = "the whole output of rknn_whisper_demo"
# examples/whisper/cpp/main.cc of rknn_model_zoo v2.3.2; first the run time, then the audio, in s.
RTF = re.compile(r"Real Time Factor \(RTF\):\s*(\d{1,9}(?:\.\d{0,9})?)\s*/\s*(\d{1,9}(?:\.\d{0,9})?)\s*=")
TEXT = re.compile(r"^Whisper output:[ \t]*(.*)$", re.MULTILINE)


def parse(output: str) -> ProgramOutput | None:
    """Return the text and times of one clip's output, None without a `Whisper output:` line."""
    text, rtf = TEXT.search(output), RTF.search(output)
    if text is None:
        return None
    seconds, audio_s = (float(rtf[1]), float(rtf[2])) if rtf else (None, None)
    return ProgramOutput(text=text[1].strip(), seconds=seconds, audio_s=audio_s)
