"""Resolve a request: model family, checkpoint and speech, each by content."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Literal

from nightjar.errors import BadCheckpoint, BadOptions, UnknownName
from nightjar.files import digest, digest_file
from nightjar.paths import ROOT
from nightjar.plugins.registry import names, plugin
from nightjar.request import ModelChoice, PortRequest
from nightjar.speech.manifest import Clip, check_disjoint, load_speech, speech_digest
from nightjar.store.artifact import Source
from nightjar.store.file_memo import FileMemo

SpeechKind = Literal["calibration", "test"]
CHECKPOINTS = (
    "an openai-whisper .pt or whisper.cpp ggml file, a Hugging Face or CTranslate2 folder, or a folder of encoder, "
    "decoder, joiner .onnx and tokens.txt"
)
_digests = FileMemo("checkpoints", digest_file)


def shipped_models() -> list[str]:
    """List the models whose weights and speech lie in data/."""
    return sorted(path.parent.name for path in (ROOT / "data").glob("*/calibration.jsonl"))


def model_family(request: ModelChoice) -> str:
    """Return the folder of models/ that the requested model belongs to: by its checkpoint if given, else by its name.

    Raises UnknownName or BadCheckpoint when there is none, BadOptions for an option that the family does not have.
    """
    families = {name: plugin("models", name).load() for name in names("models")}
    family = _family(request, families)
    for option, why in families[family].UNSUPPORTED_OPTIONS.items():
        if getattr(request, option, None) is not None:
            raise BadOptions(f"{request.model} is a {family}: {why}: remove --{option.replace('_', '-')}")
    return family


def _family(request: ModelChoice, families: Mapping[str, ModuleType]) -> str:
    if request.checkpoint is not None:
        if not request.checkpoint.exists():
            raise BadCheckpoint(f"no checkpoint at {request.checkpoint}: give --checkpoint {CHECKPOINTS}")
        found = [name for name, module in families.items() if module.recognises(request.checkpoint)]
        if not found:
            raise BadCheckpoint(f"{request.checkpoint} is no {' or '.join(families)} checkpoint: give {CHECKPOINTS}")
        return found[0]
    for name, module in families.items():
        if request.model in module.NAMES or (request.model in shipped_models() and request.model.startswith(name)):
            return name
    known = [*shipped_models(), *(known for module in families.values() for known in module.NAMES)]
    raise UnknownName(
        f"no model {request.model!r}; have {', '.join(known)}, or give a file with --checkpoint: see `nightjar models`"
    )


def checkpoint_source(request: ModelChoice, family: str) -> Source:
    """Find the checkpoint, or download it for a public name; identify it by content.

    Raises BadOptions for a language or a task that the model does not have.
    """
    shipped = ROOT / "data" / request.model / f"{request.model}.pt"
    path = request.checkpoint or (shipped if shipped.exists() else None)
    if path is None:
        path = plugin("models", family, "checkpoint").load().find_checkpoint(request.model)
    path = path.resolve()
    language, task = getattr(request, "language", "en"), getattr(request, "task", None) or "transcribe"
    if (language, task) != ("en", "transcribe"):  # all have these, and reading weights takes seconds
        plugin("models", family, "language").load().check_language(path, language, task)
    if path.is_file():
        sha256 = _digests.get(path)
    else:
        patterns = plugin("models", family).load().FILES
        files = sorted({each for pattern in patterns for each in path.glob(pattern) if each.is_file()})
        sha256 = digest({each.name: _digests.get(each) for each in files})
    _digests.save()
    return Source(path=path, sha256=sha256)


def speech_sources(request: PortRequest) -> tuple[Source, Source]:
    """Return the calibration and the evaluation speech, by content.

    Raises BadOptions when a model that ships no speech is given none, SpeakersOverlap when the two share a speaker.
    """
    calibration, calibration_clips = _load(request.model, request.calibration_set, "calibration")
    test, test_clips = _load(request.model, request.test_set, "test")
    check_disjoint(calibration_clips, test_clips)
    return calibration, test


def speech_source(model: str, path: Path | None, kind: SpeechKind) -> Source:
    """Return one list of speech by content, `path` or the model's; raises BadOptions when neither is there."""
    return _load(model, path, kind)[0]


def _load(model: str, path: Path | None, kind: SpeechKind) -> tuple[Source, list[Clip]]:
    shipped = ROOT / "data" / model / {"calibration": "calibration.jsonl", "test": "evaluation.jsonl"}[kind]
    if path is None and not shipped.exists():
        raise BadOptions(f"{model} ships no speech: give --{kind}-set a NeMo manifest, LibriSpeech tree or folder")
    clips = load_speech(path or shipped)
    return Source(path=(path or shipped).resolve(), sha256=speech_digest(clips)), clips
