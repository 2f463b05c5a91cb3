"""Whisper's decode loop over anything that runs parts: host, simulator or board; numpy only."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nightjar.features import log_mel

Array = NDArray[Any]
Tensors = dict[str, Array]
Model = Mapping[str, Any]  # model.json
Logits = Callable[[list[int]], Array]  # every token so far -> the logits that follow, (n_vocab,)
Put = Callable[[int, int, int], None]

MASKED = -1e4  # as in the graphs: finite for fp16 and int8, and exactly 0 after softmax
WINDOW = 12  # tokens of rknn_model_zoo's decoder


class Runner(Protocol):
    """What a decode loop needs of a runner."""

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, Array] = {}) -> Tensors:
        """Run one part; `constant` holds the same arrays for a whole clip, `inputs` is reused."""


def features(wave: Array, model: Model) -> Tensors:
    """Compute the encoder's input from float32 mono 16 kHz in [-1, 1]: mel (1, n_mels, n_frames)."""
    return {"mel": log_mel(wave, model["dims"]["n_mels"], model["n_frames"])[None]}


def encode(runner: Runner, features: Tensors, model: Model) -> Tensors:
    """Run the encoder: hidden (1, n_audio_ctx, d)."""
    return runner.run("encoder", features)


def decode(
    runner: Runner,
    encoded: Tensors,
    model: Model,
    language: str = "en",
    tables: Tensors | None = None,
) -> dict[str, Any]:
    """Decode greedily: token for token what whisper.decode gives without timestamps.

    Returns `tokens` without prompt and eot, `steps` (decoder runs) and `capped` (a limit ended it,
    not eot). Protocol `window` is rknn_model_zoo's loop instead. `cached` leaves its cross-attention
    tensors in `encoded`, so that a second call does not run that part again. `tables` are the
    host-embedding tables. Raises ValueError for a language the model does not have.
    """
    prompt, pick = prompt_tokens(model, language), _picker(model)
    logits = _PROTOCOLS[model["recipe"]["decoder"]](runner, encoded, model, prompt, tables)
    tokens, token, sampled = list(prompt), -1, 0
    for sampled in range(1, min(model["max_tokens"], _room(model, prompt)) + 1):
        token = pick(logits(tokens), sampled == 1)
        if token == model["tokens"]["eot"] or _repeats(token, model):
            break
        tokens.append(token)
    prefill = len(prompt) - 1 if model["recipe"]["decoder"] == "cached" else 0
    return {
        "tokens": tokens[len(prompt) :],
        "steps": prefill + sampled,
        "capped": token != model["tokens"]["eot"],
    }


def agree(
    runner: Runner,
    encoded: Tensors,
    model: Model,
    tokens: list[int],
    language: str = "en",
    tables: Tensors | None = None,
) -> int:
    """Count how many of `tokens` + [eot] the argmax predicts after the true prefix.

    What the graph has no room for counts as missed. Raises ValueError as `decode` does.
    """
    prompt, pick = prompt_tokens(model, language), _picker(model)
    logits = _PROTOCOLS[model["recipe"]["decoder"]](runner, encoded, model, prompt, tables)
    prefix, matching = list(prompt), 0
    for target in [*tokens, model["tokens"]["eot"]][: _room(model, prompt)]:
        matching += pick(logits(prefix), len(prefix) == len(prompt)) == target
        prefix.append(target)
    return matching


def prompt_tokens(model: Model, language: str = "en") -> list[int]:
    """List the tokens before the text: 4 of them, or 2 for an English-only model.

    Raises ValueError for a language the model does not have.
    """
    table = model["tokens"]
    languages = table["languages"] or {"en": None}
    if language not in languages:
        raise ValueError(
            f"no language {language!r} in this model: have {', '.join(sorted(languages))}; "
            f"pass one of them with --language"
        )
    task = [languages[language], table["transcribe"]] if table["languages"] else []
    return [table["sot"], *task, table["no_timestamps"]]


def _room(model: Model, prompt: list[int]) -> int:
    """Count the tokens that can be sampled before the prefix outgrows the graph."""
    if model["recipe"]["decoder"] == "window":
        return int(model["dims"]["n_text_ctx"])  # the window slides: this only bounds agree
    return int(model["recipe"]["decoder_length"]) - len(prompt) + 1


def _repeats(token: int, model: Model) -> bool:
    """Tell a `window` loop that would stand still.

    rknn_model_zoo skips a timestamp (above <|0.00|>) and leaves the window as it was, so that every
    further step samples it again, until the guard of 1000 steps.
    """
    return bool(model["recipe"]["decoder"] == "window" and token > model["tokens"]["timestamp_begin"])


def _picker(model: Model) -> Callable[[Array, bool], int]:
    """Make the function from logits (n_vocab,) and "is it the first?" to the next token.

    That is whisper.decode's SuppressBlank and SuppressTokens, then argmax; in `window` argmax alone.
    """
    table = model["tokens"]
    n_vocab = table["n_vocab"]
    if model["recipe"]["decoder"] == "window":
        return lambda logits, first: int(logits[:n_vocab].argmax())
    later = np.zeros(n_vocab, np.float32)
    later[table["suppress"]] = -np.inf
    start = later.copy()
    start[table["suppress_first"]] = -np.inf
    scratch = np.empty(n_vocab, np.float32)

    def pick(logits: Array, first: bool) -> int:
        return int(np.add(logits[:n_vocab], start if first else later, out=scratch).argmax())

    return pick


def _feed(model: Model, n_rows: int, tables: Tensors | None) -> tuple[Tensors, Put]:
    """Make a decoder's token inputs of `n_rows` rows, and what puts (row, token, position) there.

    Rows not yet written hold eot, embedded on the host exactly as the graph would embed it.
    """
    recipe, eot = model["recipe"], model["tokens"]["eot"]
    if not recipe["host_embedding"]:
        ids, positions = np.full((1, n_rows), eot, np.int64), np.zeros((1, n_rows), np.int64)

        def put_ids(row: int, token: int, position: int) -> None:
            ids[0, row], positions[0, row] = token, position

        one = recipe["decoder"] == "cached"
        return {"token": ids, "position": positions} if one else {"tokens": ids}, put_ids
    if tables is None:
        raise ValueError("host embedding needs the tables token_embedding and positional_embedding")
    words, places = tables["token_embedding"], tables["positional_embedding"]
    rows = (words[eot] + places[:n_rows])[None].astype(np.float32)

    def put_rows(row: int, token: int, position: int) -> None:
        np.add(words[token], places[position], out=rows[0, row])

    return {"embedding": rows}, put_rows


def _static(runner: Runner, encoded: Tensors, model: Model, prompt: list[int], tables: Tensors | None) -> Logits:
    """Step over the whole padded prefix; the causal mask hides the padding."""
    length = model["recipe"]["decoder_length"]
    inputs, put = _feed(model, length, tables)
    last = np.zeros((1, 1, length), np.float32)
    inputs["last"] = last
    constant = {"audio": _hidden(encoded)}
    done = 0

    def logits(tokens: list[int]) -> Array:
        nonlocal done
        for row in range(done, len(tokens)):
            put(row, tokens[row], row)
        done = len(tokens)
        last[:] = 0.0
        last[0, 0, done - 1] = 1.0
        return runner.run("decoder", inputs, constant)["logits"].reshape(-1)

    return logits


def _window(runner: Runner, encoded: Tensors, model: Model, prompt: list[int], tables: Tensors | None) -> Logits:
    """Step over 12 tokens as rknn_model_zoo does: the prompt repeated, the text sliding in behind.

    Each token pushes out the one at `pop_id`, which walks from 12 down to the first prompt's end;
    the zoo knows multilingual prompts alone (4 tokens, three times): English-only ones go in six
    times, and 2 tokens stay.
    """
    inputs, put = _feed(model, WINDOW, tables)
    constant = {"audio": _hidden(encoded)}
    window = prompt * (WINDOW // len(prompt))
    pop_id, done = WINDOW, len(prompt)

    def logits(tokens: list[int]) -> Array:
        nonlocal pop_id, done
        for token in tokens[done:]:
            pop_id = max(pop_id - 1, len(prompt))
            window.append(token)
            window.pop(pop_id)
        done = len(tokens)
        for row, token in enumerate(window):
            put(row, token, row)
        last: Array = runner.run("decoder", inputs, constant)["out"][0, -1]
        return last

    return logits


def _cached(runner: Runner, encoded: Tensors, model: Model, prompt: list[int], tables: Tensors | None) -> Logits:
    """Step one token at a time over a KV cache kept here, written in place."""
    if "cross_k_0" not in encoded:
        encoded.update(runner.run("cross", {"hidden": _hidden(encoded)}))
    length, d = model["recipe"]["decoder_length"], model["dims"]["n_text_state"]
    layers = [f"{kind}_{i}" for i in range(model["dims"]["n_text_layer"]) for kind in "kv"]
    constant = {f"cross_{layer}": encoded[f"cross_{layer}"] for layer in layers}
    cache = {layer: np.zeros((1, length, d), np.float32) for layer in layers}
    mask = np.full((1, 1, 1, length + 1), MASKED, np.float32)
    mask[..., -1] = 0.0  # the token itself, which the graph sets behind the cache's rows
    inputs, put = _feed(model, 1, tables)
    inputs |= {"mask": mask, **{f"self_{layer}": rows for layer, rows in cache.items()}}
    writes = [(rows[0], f"new_{layer}") for layer, rows in cache.items()]
    done = 0

    def logits(tokens: list[int]) -> Array:
        nonlocal done
        for position in range(done, len(tokens)):
            put(0, tokens[position], position)
            outputs = runner.run("decoder", inputs, constant)
            for rows, name in writes:
                rows[position] = outputs[name][0, 0]
            mask[..., position] = 0.0
        done = len(tokens)
        return outputs["logits"].reshape(-1)

    return logits


def _hidden(encoded: Tensors) -> Array:
    """Take the hidden states as float32; a harvest stores them as float16."""
    return np.asarray(encoded["hidden"], np.float32)


_PROTOCOLS = {"window": _window, "static": _static, "cached": _cached}
