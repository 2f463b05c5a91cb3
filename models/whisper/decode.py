"""Whisper's decode loop over anything that runs parts: host, simulator or board; numpy only."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.whisper.protocols import PROTOCOLS, Array, Model, Runner, Tensors, count_common
from models.whisper.timestamps import allow_timestamps
from nightjar.device.clip_decoding import EncodedClip as EncodedClip
from nightjar.device.clip_decoding import Stopwatch, WatchedLogits
from nightjar.device.log_mel import log_mel

WATCHED = 16  # tokens whose logits are recorded per step: all but a thousandth of the probability
Steps = Generator[list[int], Array, Any]  # yields every token so far, takes the logits that follow, (n_vocab,)


@dataclass
class _Lane:
    """One clip in progress: it waits for the logits that follow `prefix`."""

    name: str
    steps: Steps
    prefix: list[int]
    seconds: dict[str, float]


def features(wave: Array, model: Model) -> Tensors:
    """Compute mel (1, n_mels, n_frames), or (1, n_mels, 1, n_frames), from float32 mono 16 kHz in [-1, 1]."""
    mel = log_mel(wave, model["dims"]["n_mels"], model["n_frames"])[None]
    return {"mel": mel[:, :, None] if model["recipe"].get("conv2d") else mel}


def encode(runner: Runner, features: Tensors, model: Model, keep: Collection[str] = ()) -> Tensors:
    """Run the encoder: hidden (1, n_audio_ctx, d). keep is for streams."""
    return runner.run("encoder", features)


def decode(
    runner: Runner, encoded: Tensors, model: Model, language: str = "en", tables: Tensors | None = None
) -> dict[str, Any]:
    """Decode greedily: token for token what whisper.decode gives without timestamps.

    Returns `tokens` without prompt and eot, `language`, `steps` (decoder runs) and `capped` (ended by a limit, not by
    eot). Language "auto" detects it as whisper.detect_language does: by the likeliest language after the start token.
    Protocol `window` is rknn_model_zoo's loop instead. `cached` leaves its cross-attention tensors in `encoded`, so
    that a second call does not run that part again. tables: the host-embedding tables. Raises ValueError for a language
    or a task that the model does not have.
    """
    _, result = next(decode_clips(runner, [EncodedClip("", encoded)], model, language, tables))
    del result["seconds"]
    return result


def decode_clips(
    runner: Runner,
    clips: Iterable[EncodedClip],
    model: Model,
    language: str = "en",
    tables: Tensors | None = None,
    lanes: int = 1,
    clock: Mapping[str, float] = {},
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Decode clips as `decode` does, `lanes` of them in each decoder run, and yield (name, result) as they end.

    A lane takes the next clip when its clip ends, so `clips` is read no faster than it is processed. More than one lane
    needs a `cached` decoder that takes any number of lanes and of cache rows. clock: the runner's count of seconds per
    part; a result's `seconds` has the clip's share of each run, and of the loop itself as `total`. With `forced` tokens
    a result has `agree` [matching, of], with `watch` it has `watched` {ids, logits, norm (log of the sum of all exp)},
    a list per step; steps that the free decoding had already are not run again.
    """
    prompt_tokens(model, language)  # is refused before the first clip
    protocol = PROTOCOLS[model["recipe"]["decoder"]](runner, model, tables, lanes)
    waiting, busy = iter(clips), dict[int, _Lane]()
    while True:
        for lane in range(lanes):
            if lane not in busy and (clip := next(waiting, None)) is not None:
                steps = _steps(model, language, clip.forced, clip.watch)
                busy[lane] = _Lane(clip.name, steps, next(steps), defaultdict(float))
                with _share_seconds([busy[lane]], clock):
                    protocol.begin(lane, clip.encoded)
        if not busy:
            return
        ended = {}
        with _share_seconds(busy.values(), clock):
            for lane, logits in protocol.step({lane: taken.prefix for lane, taken in busy.items()}).items():
                try:
                    busy[lane].prefix = busy[lane].steps.send(logits)
                except StopIteration as end:
                    ended[lane] = end.value
        for lane, result in ended.items():
            done = busy.pop(lane)
            yield done.name, {**result, "seconds": dict(done.seconds)}


@contextlib.contextmanager
def _share_seconds(clips: Collection[_Lane], clock: Mapping[str, float]) -> Iterator[None]:
    """Add the seconds of the code inside to clips, in equal shares."""
    stopwatch = Stopwatch(clock)
    yield
    spent = stopwatch.seconds()
    for clip in clips:
        for part, seconds in spent.items():
            clip.seconds[part] += seconds / len(clips)


def _steps(model: Model, language: str, forced: list[int] | None, watch: list[list[int]] | None) -> Steps:
    """Sample until eot or a limit; then continue along `forced` from where the text left it."""
    table, protocol = model["tokens"], model["recipe"]["decoder"]
    if language == "auto":
        language = "en"
        if languages := table["languages"]:
            logits = yield [table["sot"]]
            language = max(languages, key=lambda code: logits[languages[code]])
    prompt, pick, eot = prompt_tokens(model, language), _picker(model), table["eot"]
    # The window slides: its room only bounds agreement.
    room = model["dims"]["n_text_ctx"] if protocol == "window" else model["recipe"]["decoder_length"] - len(prompt) + 1
    watched = None if watch is None else WatchedLogits(watch, WATCHED)
    targets = None if forced is None else [*forced, eot]
    picked, tokens, capped = list[int](), list[int](), True
    while len(picked) < min(model["max_tokens"], room):
        logits = yield [*prompt, *tokens]
        if watched and (targets is None or picked == targets[: len(picked)]):
            watched.record(logits)
        token = pick(logits, picked)
        picked.append(token)
        # rknn_model_zoo skips a timestamp (above <|0.00|>) and leaves the window as it was, so that every further step
        # samples it again, until the guard of 1000 steps.
        if token == eot or (protocol == "window" and token > table["timestamp_begin"]):
            capped = token != eot
            break
        tokens.append(token)
    prefill = len(prompt) - 1 if protocol == "cached" else 0
    result = {"tokens": tokens, "language": language, "steps": prefill + len(picked), "capped": capped}
    if targets is not None:
        # Known are the predictions up to the first that is not its target.
        matching = count_common(picked, targets)
        for row in range(min(matching + 1, len(picked)), min(len(targets), room)):
            logits = yield [*prompt, *targets[:row]]
            if watched:
                watched.record(logits)
            matching += pick(logits, targets[:row]) == targets[row]
        result["agree"] = [matching, len(targets)]
    return result | ({"watched": watched.rows} if watched else {})


def prompt_tokens(model: Model, language: str = "en") -> list[int]:
    """List the tokens before the text: 4 of them, or 2 for an English-only model; the recipe has the task.

    For "auto" they are those of the model's first language. Raises ValueError for a language or a task the model does
    not have.
    """
    table, task = model["tokens"], model.get("recipe", {}).get("task", "transcribe")
    languages = table["languages"] or {"en": None}
    if language not in languages and language != "auto":
        have = ", ".join(sorted(languages))
        raise ValueError(f"no language {language!r} in this model: have auto, {have}; pass one of them with --language")
    if task == "translate" and not table["languages"]:
        raise ValueError("an English-only model does not translate: remove --task translate")
    chosen = [languages.get(language, table["sot"] + 1), table[task]] if table["languages"] else []
    return [table["sot"], *chosen, *([] if model.get("timestamps") else [table["no_timestamps"]])]


def _picker(model: Model) -> Callable[[Array, Sequence[int]], int]:
    """Make the function from logits (n_vocab,) and the tokens so far to the next token."""
    table = model["tokens"]
    later = np.zeros(table["n_vocab"], np.float32)
    start, scratch = later.copy(), later.copy()
    if model["recipe"]["decoder"] != "window":  # whisper.decode's SuppressBlank and SuppressTokens; the zoo has none
        later[table["suppress"]] = -np.inf
        start[table["suppress"] + table["suppress_first"]] = -np.inf

    def pick(logits: Array, picked: Sequence[int]) -> int:
        np.add(logits[: len(scratch)], later if picked else start, out=scratch)
        return int((allow_timestamps(scratch, picked, table) if model.get("timestamps") else scratch).argmax())

    return pick
