"""What a person asks of a port: one frozen model is the command line, the Prefect form and the documentation."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

StageName = Literal[
    "export",
    "build",
    "harvest",
    "calibrate",
    "rank",
    "rewrite",
    "quantize",
    "plan",
    "measure",
    "frontier",
    "lint",
    "evaluate",
    "stock",
    "judge",
    "report",
    "adopt",
    "import_dumps",
    "bundle",
    "run_program",
    "dump_program",
]


class PortRequest(BaseModel):
    """Port one model to one target and say, with numbers, whether the result is still a speech recogniser."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        "whisper-nano",
        description="tiny, small.en, …, a shipped model, or a label for --checkpoint (`nightjar models` lists them)",
    )
    checkpoint: Path | None = Field(
        None,
        description="openai-whisper .pt, Hugging Face folder, or folder of a streaming Zipformer: encoder, decoder and "
        "joiner .onnx, tokens.txt; its family is read from it",
    )
    target: str = Field("onnx", description="NPU to port to (`nightjar targets` lists them)")
    board: str | None = Field(
        None,
        description="local, what `nightjar targets` lists for the target, an ssh alias, or several of a kind: a,b; "
        "default: its best without hardware",
    )
    board_wait: float | None = Field(
        None, ge=0, description="seconds to wait for a board that somebody else holds; default: as long as it takes"
    )
    precision: Literal["fp", "int8", "w8a16", "auto"] = Field(
        "int8", description="numbers the binary computes with; w8a16: int8 weights, int16 activations"
    )
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
    float_nodes: tuple[str, ...] = Field(
        (), description="int8: nodes to keep float, as `part:glob`, such as encoder:/blocks.0/mlp/*"
    )
    target_options: tuple[str, ...] = Field(
        (), description="options of the target's own as `name=value`; its README lists them, commas part several values"
    )
    language: str = Field("en", description="language spoken, as Whisper abbreviates it")
    calibration_set: Path | None = Field(
        None, description="NeMo manifest, LibriSpeech tree or folder of audio with .txt; default: the shipped model's"
    )
    calibration_samples: int = Field(200, ge=1, description="samples per part; below 100 warns")
    calibration_states: Literal["sampled", "zero", "full"] | None = Field(
        None, description="streams: steps with their true states, the same steps with zeros, or every step there is"
    )
    calibration_features: Literal["kaldi", "librosa", "waveform-dc"] | None = Field(
        None, description="streams: as the recogniser hears, or as others have calibrated (docs/zipformer.md)"
    )
    test_set: Path | None = Field(None, description="evaluation speech, in the same forms; its speakers must be others")
    limit: int | None = Field(None, ge=1, description="evaluate only N clips, drawn by their ids")
    long: Literal["skip", "refuse", "chunk"] = Field(
        "skip",
        description="clips longer than the window: skip and count them, refuse them, "
        "or chunk: cut them at pauses, decode the pieces and join their text",
    )
    max_delta_wer: float = Field(1.0, ge=0, description="budget: points of WER the binary may lose against float")
    drift: float | None = Field(
        None, ge=0, description="streams: seconds of one long stream that binary and float hear; default: 60, 0: none"
    )
    search_delta_wer: float = Field(
        0.5, ge=0, description="auto: points of WER that the precision search may lose on calibration speech"
    )
    refresh: tuple[StageName, ...] = Field((), description="stages to run again although they are cached")


PROGRAM = (
    "the board's own program: a command line with {clip}, and perhaps {language} and {binary}, or `declared` for that "
    "of boards.toml"
)


class LintRequest(PortRequest):
    """Say beforehand what a target will refuse in a model, and what its recipe does about it."""

    FLAGS: ClassVar[tuple[str, ...]] = (
        *("model", "checkpoint", "target", "window", "decoder", "decoder_length", "positional", "host_embedding"),
        "refresh",
    )


class ImportRequest(PortRequest):
    """Make a calibration set of encoder outputs that another tool dumped."""

    FLAGS: ClassVar[tuple[str, ...]] = (
        *("model", "checkpoint", "target", "window", "decoder", "positional", "language", "bin_dir"),
        *("calibration_set", "calibration_samples", "board", "program", "program_cwd", "program_timeout_s", "dumps"),
        "refresh",
    )

    bin_dir: Path | None = Field(
        None,
        description="folder of enc_000000.bin, … (lines of the calibration manifest, from 0) or enc_CLIPID.bin: "
        "little-endian float32, encoder rows × width",
    )
    program: str | None = Field(None, description=PROGRAM + ", run on every calibration clip in place of --bin-dir")
    program_cwd: str = Field("", description="folder on the board where it is started; default: an empty one")
    program_timeout_s: float = Field(60, gt=0, description="seconds that it may take for one clip")
    dumps: str = Field("enc_*.bin", description="what it dumps, one file per clip: a glob from --program-cwd")


class EvaluateRequest(PortRequest):
    """Score files made elsewhere as `port` scores its own; which file is what is read from them."""

    FLAGS: ClassVar[tuple[str, ...]] = (
        *("files", "model", "checkpoint", "target", "board", "board_wait", "positional", "language", "test_set"),
        *("limit", "long", "max_delta_wer", "program", "program_cwd", "program_timeout_s", "refresh"),
    )

    files: tuple[Path, ...] = Field(
        (), description="the parts' files as the target runs them, in any order; with --program, what {binary} holds"
    )
    program: str | None = Field(None, description=PROGRAM)
    program_cwd: str = Field("", description="folder on the board where it is started; default: an empty one")
    program_timeout_s: float = Field(60, gt=0, description="seconds that it may take for one clip")


class DeployRequest(PortRequest):
    """Put a port on a board, beside the current release, and make it current if its canary hears what the port did."""

    board: str = Field(description="ssh alias of the board")
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$",
        description="what the deployment is called on the board; default: the model's name",
    )
    canary_clips: int = Field(8, ge=1, description="evaluation clips that a release must hear before the switch")
    canary_against: Literal["port", "float"] = Field(
        "port", description="what it is held against: what the port's binary heard, or the float graphs on the host"
    )
    max_canary_wer: float = Field(5.0, ge=0, description="percent of words that may differ from that")
    keep: int = Field(3, ge=1, description="releases that stay on the board, the current one among them")
    force: bool = Field(False, description="deploy a port whose verdict is FAIL")


class AttributeRequest(PortRequest):
    """Hear every encoder with every decoder, and say which part a loss belongs to."""

    FLAGS: ClassVar[tuple[str, ...]] = (
        *("model", "checkpoint", "target", "board", "board_wait", "precisions", "window", "decoder"),
        *("host_embedding", "float_nodes", "target_options"),
        *("language", "calibration_set", "calibration_samples", "test_set", "limit", "max_delta_wer"),
        *("search_delta_wer", "refresh"),
    )

    precisions: tuple[Literal["float", "fp", "int8", "w8a16", "auto"], ...] = Field(
        ("float", "fp", "int8", "auto"),
        description="of encoder and decoder; float is the graphs as they are",
    )
    limit: int | None = Field(24, ge=1, description="evaluate only N clips, drawn by their ids")


class TranscribeRequest(PortRequest):
    """Print what a port hears in audio files."""

    FLAGS: ClassVar[tuple[str, ...]] = (
        *("files", "model", "checkpoint", "target", "board", "board_wait", "precision", "window", "language"),
        *("target_options", "calibration_set", "calibration_samples", "long", "refresh"),
    )

    files: tuple[Path, ...] = Field(description="audio files, manifests or folders")
    precision: Literal["fp", "int8", "w8a16", "auto"] = Field("fp", description="numbers the binary computes with")
    long: Literal["skip", "refuse", "chunk"] = Field(
        "chunk", description="audio longer than the window: chunk cuts it at pauses and joins the text of the pieces"
    )


class HarvestRequest(BaseModel):
    """Run much speech through a binary's encoder and keep its outputs as a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    binary: Path = Field(description="folder that build wrote, as the board's service has it")
    speech: Path = Field(description="NeMo manifest, LibriSpeech tree or folder of audio; needs no text")
    board: str | None = Field(None, description="as for port; by its service where boards.toml names one")
    out: Path = Field(description="folder of the dataset; the same command goes on in it")
    limit: int | None = Field(None, ge=1, description="only N clips, drawn by their ids")
    shard_mib: int = Field(256, ge=1, le=4096, description="size of a shard, all tensors together")
    dumps: Path | None = Field(
        None,
        description="also write enc_000000.bin, … there, float32, numbered by the speech list's lines; "
        "enc_CLIPID.bin where a folder is given",
    )
