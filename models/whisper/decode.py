"""Whisper's decode loop over anything that runs parts: host, simulator or board; numpy only."""

import contextlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from models.whisper.protocols import PROTOCOLS, Array, Model, Runner, Tensors
from models.whisper.timestamps import allow_timestamps
from nightjar.device.clip_decoding import EncodedClip as EncodedClip
from nightjar.device.clip_decoding import Stopwatch, WatchedLogits
from nightjar.device.log_mel import log_mel

WATCHED = 16  # tokens whose logits are recorded per step: all but a thousandth of the probability
Steps = Generator[list[int], Array, Any]  # yields every token so far, takes the logits that follow, (n_vocab,)


def features(wave: Array, model: Model) -> Tensors:
    """Compute the encoder's input from float32 mono 16 kHz in [-1, 1]: mel (1, n_mels, n_frames).

    With `conv2d` (1, n_mels, 1, n_frames).
    """
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
    steps = _greedy(model, _prompt(model, language), None, None)
    result: dict[str, Any] = _run_steps(runner, encoded, model, tables, steps)
    return result


def agree(
    runner: Runner,
    encoded: Tensors,
    model: Model,
    tokens: list[int],
    language: str = "en",
    tables: Tensors | None = None,
) -> int:
    """Count how many of `tokens` + [eot] the argmax predicts after the true prefix.

    Tokens beyond the graph's length count as missed. Raises ValueError as `decode` does.
    """

    def count() -> Steps:
        prompt = yield from _prompt(model, language)
        return (yield from _agreement(model, prompt, tokens, [], None))

    matching: int = _run_steps(runner, encoded, model, tables, count())
    return matching


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
                prompt = _prompt(model, language)
                busy[lane] = _Lane(clip.name, _greedy(model, prompt, clip.forced, clip.watch))
                with _share_seconds([busy[lane]], clock):
                    protocol.begin(lane, clip.encoded)
        if not busy:
            return
        with _share_seconds(busy.values(), clock):
            logits_of = protocol.step({lane: taken.prefix for lane, taken in busy.items()})
            ended = [lane for lane, logits in logits_of.items() if busy[lane].advance(logits)]
        for lane in ended:
            done = busy.pop(lane)
            yield done.name, {**done.result, "seconds": done.seconds}


@contextlib.contextmanager
def _share_seconds(clips: Collection["_Lane"], clock: Mapping[str, float]) -> Iterator[None]:
    """Add the seconds of the code inside to clips, in equal shares."""
    stopwatch = Stopwatch(clock)
    yield
    spent = stopwatch.seconds()
    for clip in clips:
        for part, seconds in spent.items():
            clip.seconds[part] = clip.seconds.get(part, 0.0) + seconds / len(clips)


class _Lane:
    """One clip in progress."""

    def __init__(self, name: str, steps: Steps) -> None:
        self.name, self.steps, self.prefix = name, steps, next(steps)
        self.seconds: dict[str, float] = {}
        self.result: Any = None

    def advance(self, logits: Array) -> bool:
        """Take the logits that follow the prefix, and return whether the clip has ended."""
        try:
            self.prefix = self.steps.send(logits)
        except StopIteration as end:
            self.result = end.value
            return True
        return False


def _run_steps(runner: Runner, encoded: Tensors, model: Model, tables: Tensors | None, steps: Steps) -> Any:
    """Run one clip's steps and return their result."""
    protocol = PROTOCOLS[model["recipe"]["decoder"]](runner, model, tables, 1)
    protocol.begin(0, encoded)
    lane = _Lane("", steps)
    while lane.result is None:
        for logits in protocol.step({0: lane.prefix}).values():
            lane.advance(logits)
    return lane.result


def _prompt(model: Model, language: str) -> Steps:
    """Return the prompt's tokens; with "auto" the language is that of the highest logit after the start token."""
    table = model["tokens"]
    if language == "auto" and table["languages"]:
        logits = yield [table["sot"]]
        language = max(table["languages"], key=lambda code: logits[table["languages"][code]])
    return prompt_tokens(model, language)


def _greedy(model: Model, prompting: Steps, forced: list[int] | None, watch: list[list[int]] | None) -> Steps:
    """Sample until eot or a limit; then continue along `forced` from where the text left it."""
    prompt = yield from prompting
    pick, eot = _picker(model), model["tokens"]["eot"]
    watched = WatchedLogits(watch, WATCHED) if watch is not None else None
    targets = None if forced is None else [*forced, eot]
    tokens, token, picked = list(prompt), -1, list[int]()
    for _ in range(min(model["max_tokens"], _room(model, prompt))):
        logits = yield tokens
        if watched and (targets is None or picked == targets[: len(picked)]):
            watched.record(logits)
        token = pick(logits, picked)
        picked.append(token)
        if token == eot or _repeats(token, model):
            break
        tokens.append(token)
    prefill = len(prompt) - 1 if model["recipe"]["decoder"] == "cached" else 0
    result: dict[str, Any] = {
        "tokens": tokens[len(prompt) :],
        "language": _language(model, prompt),
        "steps": prefill + len(picked),
        "capped": token != eot,
    }
    if forced is not None:
        matching = yield from _agreement(model, prompt, forced, picked, watched)
        result["agree"] = [matching, len(forced) + 1]
    return result | ({"watched": watched.rows} if watched else {})


def _agreement(
    model: Model, prompt: list[int], tokens: list[int], picked: list[int], watched: WatchedLogits | None
) -> Steps:
    """Count the targets predicted; `picked` are known predictions, valid as long as they are the targets."""
    pick = _picker(model)
    prefix, matching, known = list(prompt), 0, list(picked)
    for target in [*tokens, model["tokens"]["eot"]][: _room(model, prompt)]:
        if known:
            token = known.pop(0)
        else:
            logits = yield prefix
            token = pick(logits, prefix[len(prompt) :])
            if watched:
                watched.record(logits)
        if token == target:
            matching += 1
        else:
            known.clear()
        prefix.append(target)
    return matching


def prompt_tokens(model: Model, language: str = "en") -> list[int]:
    """List the tokens before the text: 4 of them, or 2 for an English-only model; the recipe has the task.

    For "auto" they are those of the model's first language. Raises ValueError for a language or a task the model does
    not have.
    """
    table, task = model["tokens"], model.get("recipe", {}).get("task", "transcribe")
    languages = table["languages"] or {"en": None}
    if language not in languages and language != "auto":
        raise ValueError(
            f"no language {language!r} in this model: have auto, {', '.join(sorted(languages))}; "
            f"pass one of them with --language"
        )
    if task == "translate" and not table["languages"]:
        raise ValueError("an English-only model does not translate: remove --task translate")
    chosen = [languages.get(language, table["sot"] + 1), table[task]] if table["languages"] else []
    return [table["sot"], *chosen, *([] if model.get("timestamps") else [table["no_timestamps"]])]


def _language(model: Model, prompt: list[int]) -> str:
    """Return the language of a prompt."""
    return next((code for code, token in model["tokens"]["languages"].items() if token == prompt[1]), "en")


def _room(model: Model, prompt: list[int]) -> int:
    """Count the tokens that can be sampled before the prefix outgrows the graph."""
    if model["recipe"]["decoder"] == "window":
        return int(model["dims"]["n_text_ctx"])  # the window slides: this only bounds agree
    return int(model["recipe"]["decoder_length"]) - len(prompt) + 1


def _repeats(token: int, model: Model) -> bool:
    """Return whether a `window` loop makes no progress.

    rknn_model_zoo skips a timestamp (above <|0.00|>) and leaves the window as it was, so that every further step
    samples it again, until the guard of 1000 steps.
    """
    return bool(model["recipe"]["decoder"] == "window" and token > model["tokens"]["timestamp_begin"])


def _picker(model: Model) -> Callable[[Array, Sequence[int]], int]:
    """Make the function from logits (n_vocab,) and the tokens so far to the next token.

    That is whisper.decode's SuppressBlank, SuppressTokens and, with timestamps, ApplyTimestampRules, then argmax; in
    `window` argmax alone.
    """
    table = model["tokens"]
    n_vocab = table["n_vocab"]
    if model["recipe"]["decoder"] == "window":
        return lambda logits, picked: int(logits[:n_vocab].argmax())
    later = np.zeros(n_vocab, np.float32)
    later[table["suppress"]] = -np.inf
    start = later.copy()
    start[table["suppress_first"]] = -np.inf
    scratch = np.empty(n_vocab, np.float32)

    def pick(logits: Array, picked: Sequence[int]) -> int:
        np.add(logits[:n_vocab], later if picked else start, out=scratch)
        return int((allow_timestamps(scratch, picked, table) if model.get("timestamps") else scratch).argmax())

    return pick
