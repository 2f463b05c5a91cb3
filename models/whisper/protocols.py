"""The decoder protocols: a decoder graph's inputs for a prefix of tokens, and the state between steps."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = dict[str, Array]
Model = Mapping[str, Any]  # model.json
Put = Callable[[int, list[int], int], None]  # lane, tokens, position of the first

MASKED = -1e4  # as in the graphs: finite for fp16 and int8, and exactly 0 after softmax
WINDOW = 12  # tokens of rknn_model_zoo's decoder
FIRST_ROWS = 64  # of a KV cache that can grow: enough for most clips of 10 s


class Runner(Protocol):
    """The interface of a runner that a decode loop needs."""

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, Array] = {}, **into: Tensors) -> Tensors:
        """Run one part; `constant` has the same arrays for a whole clip, `inputs` is reused.

        into: arrays that a runner of several lanes writes the outputs to.
        """


def _feed(model: Model, lanes: int, n_rows: int, tables: Tensors | None) -> tuple[Tensors, Put]:
    """Make a decoder's token inputs of `n_rows` rows, and the function that writes tokens to the first of them.

    Rows not yet written hold eot, embedded on the host exactly as in the graph.
    """
    recipe, eot = model["recipe"], model["tokens"]["eot"]
    if not recipe["host_embedding"]:
        ids, positions = np.full((lanes, n_rows), eot, np.int64), np.zeros((lanes, 1), np.int64)

        def put_ids(lane: int, tokens: list[int], position: int) -> None:
            ids[lane, : len(tokens)], positions[lane] = tokens, position

        one = recipe["decoder"] == "cached"
        return {"token": ids, "position": positions} if one else {"tokens": ids}, put_ids
    if tables is None:
        raise ValueError("host embedding needs the tables token_embedding and positional_embedding")
    words, places = tables["token_embedding"], tables["positional_embedding"]
    if not model.get("host_position_add", True):  # the graph adds them, as in the HEFs of hailo-apps
        places = np.zeros_like(places)
    rows = np.repeat((words[eot] + places[:n_rows])[None], lanes, axis=0).astype(np.float32)

    def put_rows(lane: int, tokens: list[int], position: int) -> None:
        rows[lane, : len(tokens)] = words[tokens] + places[position : position + len(tokens)]

    return {"embedding": rows}, put_rows


class Static:
    """Run the whole padded prefix at each step; the causal mask hides the padding."""

    def __init__(self, runner: Runner, model: Model, tables: Tensors | None, lanes: int) -> None:
        recipe = model["recipe"]
        self.runner, self.slices = runner, recipe.get("logits_slices", 1)
        self.inputs, self.put = _feed(model, 1, recipe["decoder_length"], tables)
        self.last = None
        if recipe.get("logits_rows", "last") == "last":
            self.last = self.inputs["last"] = np.zeros((1, 1, recipe["decoder_length"]), np.float32)

    def begin(self, lane: int, encoded: Tensors) -> None:
        self.constant = {"audio": _hidden(encoded)}

    def step(self, prefixes: Mapping[int, list[int]]) -> dict[int, Array]:
        self.put(0, prefixes[0], 0)
        row = len(prefixes[0]) - 1
        if self.last is not None:
            self.last[:] = 0.0
            self.last[0, 0, row], row = 1.0, 0
        outputs = self.runner.run("decoder", self.inputs, self.constant)
        if self.slices == 1:
            return {0: outputs["logits"][0, row]}
        return {0: np.concatenate([outputs[f"logits_{i}"][0, row] for i in range(self.slices)])}


class Window:
    """Run 12 tokens at each step as rknn_model_zoo does: the prompt repeated, then the text.

    Each token pushes out the one at `pop_id`, which moves from 12 down to the first prompt's end. The zoo has only
    multilingual prompts (4 tokens, three times); English-only ones go in six times, and 2 tokens stay.
    """

    def __init__(self, runner: Runner, model: Model, tables: Tensors | None, lanes: int) -> None:
        self.runner, self.prompt_size = runner, 4 if model["tokens"]["languages"] else 2
        self.inputs, self.put = _feed(model, 1, WINDOW, tables)

    def begin(self, lane: int, encoded: Tensors) -> None:
        self.constant = {"audio": _hidden(encoded)}

    def step(self, prefixes: Mapping[int, list[int]]) -> dict[int, Array]:
        prompt = prefixes[0][: self.prompt_size]
        window, pop_id = prompt * (WINDOW // len(prompt)), WINDOW
        for token in prefixes[0][len(prompt) :]:
            pop_id = max(pop_id - 1, len(prompt))
            window.append(token)
            window.pop(pop_id)
        self.put(0, window, 0)
        last = -1 if len(prompt) == self.prompt_size else len(prompt) - 1  # the start token alone asks for a language
        return {0: self.runner.run("decoder", self.inputs, self.constant)["out"][0, last]}


class Cached:
    """Run one token a lane at each step over a KV cache on the host, written in place."""

    def __init__(self, runner: Runner, model: Model, tables: Tensors | None, lanes: int) -> None:
        self.runner, self.lanes, self.length = runner, lanes, model["recipe"]["decoder_length"]
        self.layers = [f"{kind}_{i}" for i in range(model["dims"]["n_text_layer"]) for kind in "kv"]
        self.inputs, self.put = _feed(model, lanes, 1, tables)
        outputs = model["parts"]["cross"]["outputs"] if lanes > 1 else []
        self.across = {e["name"]: np.zeros([lanes * e["shape"][0], *e["shape"][1:]], np.float32) for e in outputs}
        self.fed: list[list[int]] = [[] for _ in range(lanes)]
        d, rows = model["dims"]["n_text_state"], min(FIRST_ROWS, self.length) if lanes > 1 else self.length
        self.cache = {layer: np.zeros((lanes, rows, d), np.float32) for layer in self.layers}
        self.mask = np.full((lanes, 1, 1, rows + 1), MASKED, np.float32)
        self.mask[..., -1] = 0.0  # the token itself, which the graph appends to the cache's rows

    def begin(self, lane: int, encoded: Tensors) -> None:
        if self.lanes == 1:
            if "cross_k_0" not in encoded:
                encoded.update(self.runner.run("cross", {"hidden": _hidden(encoded)}))
            self.across = {f"cross_{layer}": encoded[f"cross_{layer}"] for layer in self.layers}
        else:  # written in place: a copy of tiny's 18 MB takes as long as three decoder steps
            place = {name: np.split(rows, self.lanes)[lane] for name, rows in self.across.items()}
            self.runner.run("cross", {"hidden": _hidden(encoded)}, into=place)
        self._rewind(lane, 0)

    def step(self, prefixes: Mapping[int, list[int]]) -> dict[int, Array]:
        """Feed each lane its next token; return the logits of lanes whose whole prefix is fed."""
        at = {}
        for lane, tokens in prefixes.items():
            self._rewind(lane, min(count_common(self.fed[lane], tokens), len(tokens) - 1))
            at[lane] = len(self.fed[lane])
            self.put(lane, [tokens[at[lane]]], at[lane])
        self._grow(max(at.values()))
        outputs = self._run(max(at) + 1)
        for layer, rows in self.cache.items():
            new = outputs[f"new_{layer}"]
            for lane, position in at.items():
                rows[lane, position] = new[lane, 0]
        for lane, position in at.items():
            self.mask[lane, ..., position] = 0.0
            self.fed[lane].append(prefixes[lane][position])
        whole = [lane for lane, tokens in prefixes.items() if len(self.fed[lane]) == len(tokens)]
        return {lane: outputs["logits"][lane].reshape(-1) for lane in whole}

    def _run(self, lanes: int) -> Tensors:
        """Run the first lanes; the others are idle."""
        caches = {f"self_{layer}": rows for layer, rows in self.cache.items()}
        inputs, constant = {**self.inputs, "mask": self.mask, **caches}, self.across
        if lanes < self.lanes:
            inputs = {name: array[:lanes] for name, array in inputs.items()}
            constant = {name: array[: len(array) * lanes // self.lanes] for name, array in constant.items()}
        return self.runner.run("decoder", inputs, constant)

    def _rewind(self, lane: int, rows: int) -> None:
        """Forget a lane's tokens after its first rows."""
        self.mask[lane, ..., rows : len(self.fed[lane])] = MASKED
        del self.fed[lane][rows:]

    def _grow(self, position: int) -> None:
        """Grow the caches until they have a row for a position; fixed ones always do."""
        have = self.mask.shape[-1] - 1
        if position < have:
            return
        more = min(2 * have, self.length) - have
        for layer, rows in self.cache.items():
            self.cache[layer] = np.pad(rows, ((0, 0), (0, more), (0, 0)))
        self.mask = np.insert(self.mask, [have] * more, MASKED, axis=-1)


def count_common(one: list[int], other: list[int]) -> int:
    """Count the tokens at which two lists begin alike."""
    if other[: len(one)] == one:
        return len(one)
    return next((i for i, (old, new) in enumerate(zip(one, other, strict=False)) if old != new), len(other))


def _hidden(encoded: Tensors) -> Array:
    """Return the hidden states as float32; a harvest stores them as float16."""
    return np.asarray(encoded["hidden"], np.float32)


PROTOCOLS: dict[str, Any] = {"window": Window, "static": Static, "cached": Cached}
