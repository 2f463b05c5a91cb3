"""Resolve a request: model family, checkpoint and speech, each by content."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Literal

from nightjar.errors import BadCheckpoint, BadOptions, UnknownName
from nightjar.files import digest, digest_file
from nightjar.paths import ROOT
from nightjar.plugins.registry import names, plugin
from nightjar.request import PortRequest
from nightjar.speech.manifest import Clip, check_disjoint, load_speech, speech_digest
from nightjar.store.artifact import Source
from nightjar.store.file_memo import FileMemo

CHECKPOINTS = (
    "an openai-whisper .pt file, a Hugging Face folder, or a folder of encoder, decoder, joiner .onnx and tokens.txt"
)


_digests = FileMemo("checkpoints", digest_file)


def shipped_models() -> list[str]:
    """List the models whose weights and speech lie in data/."""
    return sorted(path.parent.name for path in (ROOT / "data").glob("*/calibration.jsonl"))


def model_family(request: PortRequest) -> str:
    """Return the folder of models/ that knows the requested model: by its checkpoint if one is given, else by its name.

    Raises UnknownName or BadCheckpoint when no family does, BadOptions for an option that the family has no use for.
    """
    families = {name: plugin("models", name).load() for name in names("models")}
    family = _family(request, families)
    for option, why in families[family].UNSUPPORTED_OPTIONS.items():
        if getattr(request, option) is not None:
            raise BadOptions(f"{request.model} is a {family}: {why}: leave out --{option.replace('_', '-')}")
    return family


def _family(request: PortRequest, families: Mapping[str, ModuleType]) -> str:
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


def checkpoint_source(request: PortRequest, family: str) -> Source:
    """Find (and for a public name fetch) the checkpoint and name it by content."""
    shipped = ROOT / "data" / request.model / f"{request.model}.pt"
    path = request.checkpoint or (shipped if shipped.exists() else None)
    if path is None:
        path = plugin("models", family, "checkpoint").load().find_checkpoint(request.model)
    path = path.resolve()
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
    found: list[tuple[Path, list[Clip]]] = []
    for given, shipped, flag in (
        (request.calibration_set, "calibration.jsonl", "--calibration-set"),
        (request.test_set, "evaluation.jsonl", "--test-set"),
    ):
        path = given or ROOT / "data" / request.model / shipped
        if given is None and not path.exists():
            raise BadOptions(
                f"{request.model} ships no speech: give {flag} a NeMo manifest, LibriSpeech tree or folder"
            )
        found.append((path.resolve(), load_speech(path)))
    (calibration, calibration_clips), (evaluation, evaluation_clips) = found
    check_disjoint(calibration_clips, evaluation_clips)
    return (
        Source(path=calibration, sha256=speech_digest(calibration_clips)),
        Source(path=evaluation, sha256=speech_digest(evaluation_clips)),
    )


def speech_source(request: PortRequest, kind: Literal["calibration", "test"]) -> Source:
    """Return one list of speech by content; raises BadOptions when none is given to a model that ships none."""
    given, shipped = {
        "calibration": (request.calibration_set, "calibration.jsonl"),
        "test": (request.test_set, "evaluation.jsonl"),
    }[kind]
    path = given or ROOT / "data" / request.model / shipped
    if given is None and not path.exists():
        raise BadOptions(
            f"{request.model} ships no speech: give --{kind}-set a NeMo manifest, LibriSpeech tree or folder"
        )
    return Source(path=path.resolve(), sha256=speech_digest(load_speech(path)))
