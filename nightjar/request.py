"""Requests: one frozen model per command is its command line, its Prefect form and its documentation.

Small groups of fields make up the requests. A request lists its groups in reverse, since pydantic puts the fields of
the last base first.
"""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

TASKS = Path(__file__).resolve().parent.parent / "tasks"
Precision = Literal["fp", "int8", "w8a16", "auto"]
LongClips = Literal["skip", "refuse", "chunk"]
AUTO = "auto"  # detected clip by clip
ALIASES = {"cmn": "zh", "fil": "tl", "iw": "he", "jv": "jw", "nb": "no"}  # codes of other standards


def stage_names() -> tuple[str, ...]:
    """List the stages of tasks/: functions under `@stage`, read from the source, since importing them takes seconds."""
    sources = (path.read_text(encoding="utf-8") for path in TASKS.glob("*.py"))
    return tuple(sorted(name for text in sources for name in re.findall(r"^@stage\b.*\ndef (\w+)", text, re.MULTILINE)))


if TYPE_CHECKING:
    StageName = str
else:
    StageName = Literal[stage_names()]


@cache
def language_code(language: str) -> str:
    """Return Whisper's code of a language: "zh" for zh-CN, Chinese, mandarin or cmn; "auto" stays.

    Raises ValueError for a language that Whisper does not know.
    """
    name = language.strip().lower().replace("_", "-")
    if name in (AUTO, "en"):  # without openai-whisper, whose import takes seconds
        return name
    codes, names = _tables()
    for each in (name, name.split("-")[0]):
        code = ALIASES.get(each) or names.get(each) or each
        if code in codes:
            return str(code)
    raise ValueError(
        f"no language {language!r}: pass --language auto, a code ({', '.join(sorted(codes))}) or an English name"
    )


def _tables() -> tuple[Any, Any]:
    from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

    return LANGUAGES, TO_LANGUAGE_CODE


class Request(BaseModel, frozen=True, extra="forbid"):
    """What every group and every request has in common."""


class ModelName(Request):
    model: str = Field(
        "whisper-nano",
        description="tiny, small.en, …, a shipped model, or a label for --checkpoint (`nightjar models` lists them)",
    )


class ModelChoice(ModelName):
    checkpoint: Path | None = Field(
        None,
        description="openai-whisper .pt, whisper.cpp ggml file, Hugging Face or CTranslate2 folder, or folder of a "
        "streaming Zipformer: encoder, decoder and joiner .onnx, tokens.txt; its family is read from it",
    )


class PrecisionChoice(Request):
    precision: Precision = Field(
        "int8", description="number format of the binary; w8a16: int8 weights, int16 activations; auto: search a mix"
    )


class TargetChoice(Request):
    target: str = Field("onnx", description="NPU to port to (`nightjar targets` lists them)")


class BoardChoice(TargetChoice):
    board: str | None = Field(
        None,
        description="local, a board that `nightjar targets` lists for the target, an ssh alias, or several boards of "
        "one kind: a,b; default: the target's best that needs no hardware",
    )
    board_wait: float | None = Field(
        None, ge=0, description="seconds to wait for a board that another run holds; default: no limit"
    )


class RecipeOptions(Request):
    """Fields that override the target's recipe."""

    window: float | None = Field(None, gt=0, description="audio window in seconds; default: the target's recipe")
    decoder: Literal["window", "static", "cached"] | None = Field(
        None, description="decoder protocol; default: the target's recipe"
    )
    decoder_length: int | None = Field(
        None, ge=8, description="rows of a static decoder's prefix or of the KV cache; default: the target's recipe"
    )
    positional: Literal["first", "last"] | None = Field(
        None, description="positional rows a shorter window keeps; rknn_model_zoo keeps the last"
    )
    host_embedding: bool | None = Field(
        None,
        description="look tokens up on the CPU, so that the decoder takes embeddings; default: the target's recipe",
    )


class BuildOptions(RecipeOptions, BoardChoice):
    """All that a build of a binary takes beside its model and precision."""

    float_nodes: tuple[str, ...] = Field(
        (), description="int8: nodes to keep in float, as `part:glob`, such as encoder:/blocks.0/mlp/*"
    )
    target_options: tuple[str, ...] = Field(
        (), description="options of this target as `name=value`; its README lists them; commas separate several values"
    )


class Language(Request):
    """Language of the speech, and of the text that is wanted."""

    language: Annotated[str, AfterValidator(language_code)] = Field(
        "en", description="language spoken: a code, an English name, or auto to detect it clip by clip"
    )
    task: Literal["transcribe", "translate"] | None = Field(
        None, description="translate: the text is English; default: transcribe"
    )

    @property
    def text_language(self) -> str:
        """Language of the text, by which it is scored."""
        return "en" if self.task == "translate" else self.language


class CalibrationSpeech(Language):
    """Speech to calibrate on, and how."""

    calibration_set: Path | None = Field(
        None, description="NeMo manifest, LibriSpeech tree or folder of audio with .txt; default: the shipped model's"
    )
    calibration_samples: int = Field(200, ge=1, description="samples per part; below 100 warns")
    calibration_states: Literal["sampled", "zero", "full"] | None = Field(
        None, description="streams: sampled steps with their true states, the same steps with zeros, or every step"
    )
    calibration_features: Literal["kaldi", "librosa", "waveform-dc"] | None = Field(
        None, description="streams: the recogniser's own features (kaldi), or another tool's (docs/zipformer.md)"
    )


class TestSpeech(Language):
    test_set: Path | None = Field(
        None, description="evaluation speech, in the same forms; it shares no speaker with the calibration speech"
    )
    limit: int | None = Field(None, ge=1, description="evaluate only N clips, drawn by their ids")


class VerdictOptions(TestSpeech):
    """All that a verdict depends on beside the binary."""

    long: LongClips = Field(
        "skip",
        description="clips longer than the window: skip and count them, refuse them, "
        "or chunk: cut them at pauses, decode the pieces and join their text",
    )
    max_delta_wer: float = Field(1.0, ge=0, description="budget: points of WER the binary may lose against float")
    drift: float | None = Field(
        None, ge=0, description="streams: seconds of the long stream that tests drift; default: 60, 0: none"
    )


class SearchBudget(Request):
    search_delta_wer: float = Field(
        0.5, ge=0, description="auto: points of WER that the precision search may lose on calibration speech"
    )


class Refresh(Request):
    refresh: tuple[StageName, ...] = Field((), description="stages to run again although they are cached")


class ProgramOptions(Request):
    """A program that the board brings along."""

    program: str | None = Field(
        None,
        description="the board's own program: a command line with {clip}, and perhaps {language} and {binary}, or "
        "`declared` for that of boards.toml; it runs once per clip",
    )
    program_cwd: str = Field("", description="folder on the board where the program starts; default: an empty one")
    program_timeout_s: float = Field(60, gt=0, description="seconds that the program may take for one clip")


class PortOptions(SearchBudget, VerdictOptions, CalibrationSpeech, BuildOptions, PrecisionChoice):
    """All that a port takes beside its model."""


class PortRequest(Refresh, PortOptions, ModelChoice):
    """Port one model to one target, and measure whether it still recognises speech."""


class LintRequest(Refresh, RecipeOptions, TargetChoice, ModelChoice):
    """List what a target refuses in a model, and what its recipe does about it."""


class ImportRequest(Refresh, ProgramOptions, CalibrationSpeech, RecipeOptions, BoardChoice, ModelChoice):
    """Make a calibration set of encoder outputs that another tool dumped."""

    bin_dir: Path | None = Field(
        None,
        description="folder of enc_000000.bin, … (lines of the calibration manifest, from 0) or enc_CLIPID.bin: "
        "little-endian float32, encoder rows × width; in place of --program",
    )
    dumps: str = Field("enc_*.bin", description="files that the program writes, one per clip: a glob in --program-cwd")


class EvaluateRequest(Refresh, ProgramOptions, VerdictOptions, BoardChoice, ModelChoice):
    """Score files made elsewhere as `port` scores its own; the part of each file is read from the file."""

    files: tuple[Path, ...] = Field(
        (), description="the parts' files as the target runs them, in any order; with --program, the value of {binary}"
    )
    positional: Literal["first", "last"] | None = Field(None, description="positional rows of the files' encoder")


class DeployRequest(PortRequest):
    """Put a port on a board beside the current release, and make it current if its canary passes."""

    board: str = Field(description="ssh alias of the board")
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$",
        description="name of the deployment on the board; default: the model's name",
    )
    canary_clips: int = Field(8, ge=1, description="evaluation clips that a release transcribes before the switch")
    canary_against: Literal["port", "float"] = Field(
        "port", description="text to compare with: of the port's binary, or of the float graphs on the host"
    )
    max_canary_wer: float = Field(5.0, ge=0, description="percent of words that may differ from that text")
    keep: int = Field(3, ge=1, description="releases that stay on the board, the current one included")
    force: bool = Field(False, description="deploy a port whose verdict is FAIL")


class AttributeRequest(Refresh, SearchBudget, TestSpeech, CalibrationSpeech, BuildOptions, ModelChoice):
    """Run every encoder with every decoder, and name the part that a loss comes from."""

    precisions: tuple[Literal["float", "fp", "int8", "w8a16", "auto"], ...] = Field(
        ("float", "fp", "int8", "auto"),
        description="of encoder and decoder; float: the exported graphs on the host",
    )
    max_delta_wer: float = Field(1.0, ge=0, description="points of WER that a part may lose")
    limit: int | None = Field(24, ge=1, description="evaluate only N clips, drawn by their ids")


class TranscribeRequest(Refresh, CalibrationSpeech, BuildOptions, PrecisionChoice, ModelChoice):
    """Transcribe audio files with a port's binary."""

    files: tuple[Path, ...] = Field(description="audio files, manifests or folders")
    timestamps: bool | None = Field(None, description="segments with the times at which they begin and end")
    format: Literal["txt", "srt", "vtt", "json"] | None = Field(
        None, description="print only what such a file holds, and progress on stderr; srt and vtt have timestamps"
    )
    precision: Precision = Field("fp", description="number format of the binary")
    long: LongClips = Field(
        "chunk", description="audio longer than the window: chunk cuts it at pauses and joins the text of the pieces"
    )


class CompareRequest(Language, ModelChoice):
    """Transcribe clips with the stock recogniser, with TorchScript and with ONNX."""

    files: tuple[Path, ...] = Field(description="audio files, manifests or folders")
    window: float | None = Field(None, gt=0, description="audio window in seconds; default: the model's, at most 30")
    out: Path = Field(Path("reports/compare"), description="folder for the JSON files")


class HarvestRequest(Request):
    """Run much speech through a binary's encoder and keep its outputs as a dataset."""

    binary: Path = Field(description="folder that build wrote, the same as on the board's service")
    speech: Path = Field(description="NeMo manifest, LibriSpeech tree or folder of audio; needs no text")
    board: str | None = Field(None, description="as for port; by its service where boards.toml names one")
    out: Path = Field(description="folder of the dataset; the same command continues an interrupted one")
    limit: int | None = Field(None, ge=1, description="only N clips, drawn by their ids")
    shard_mib: int = Field(256, ge=1, le=4096, description="size of a shard, all tensors together")
    dumps: Path | None = Field(
        None,
        description="also write enc_000000.bin, … there, float32, numbered by the speech list's lines; "
        "enc_CLIPID.bin where a folder is given",
    )


def as_port(request: Request, **changes: Any) -> PortRequest:
    """Return the port that another request needs: the fields that both have, `changes`, and the defaults of a port."""
    shared = type(request).model_fields.keys() & PortRequest.model_fields.keys()
    return PortRequest(**{name: getattr(request, name) for name in shared} | changes)


def command_line(request: PortRequest | EvaluateRequest) -> str:
    """Return the command that repeats this request, without --refresh and --board-wait."""
    words = ["nightjar", "port" if isinstance(request, PortRequest) else "evaluate"]
    options = request.model_dump(mode="json", exclude_defaults=True, exclude={"refresh", "board_wait"})
    for name, value in options.items():
        values = [str(each) for each in (value if isinstance(value, list) else [value])]
        if name == "files":
            words += values
        elif isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
        else:
            words += [f"--{name.replace('_', '-')}", *values]
    return shlex.join(words)
