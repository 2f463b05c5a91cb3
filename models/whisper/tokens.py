"""Which Whisper a checkpoint is, its special tokens for a decode loop, and text from token ids; host side."""

import itertools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from whisper.decoding import DecodingOptions, DecodingTask
from whisper.tokenizer import LANGUAGES, Tokenizer, get_tokenizer

from models.whisper.timestamps import split_segments
from nightjar.errors import BadCheckpoint

LIKELY = 0.05  # of a first token: 0.3 and more in OpenAI's weights of that kind, 1e-3 and less in all others
NEXT = "give the folder with its tokenizer.json, or another checkpoint, with --checkpoint"


class Vocabulary(NamedTuple):
    """One of Whisper's three vocabularies, and the tokens that a fine-tune added behind it: texts by id."""

    multilingual: bool
    n_languages: int
    added: Mapping[int, str] = {}

    @property
    def tokenizer(self) -> Tokenizer:
        """openai-whisper's tokenizer, which does not close its vocabulary file."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            return get_tokenizer(self.multilingual, num_languages=self.n_languages)

    @property
    def size(self) -> int:
        """Count the tokens without the added ones: 51864, 51865 or 51866."""
        return self.tokenizer.encoding.n_vocab

    @property
    def label(self) -> str:
        """Return what a message calls it."""
        return f"multilingual ({self.n_languages} languages)" if self.multilingual else "English-only"


VOCABULARIES = (Vocabulary(False, 99), Vocabulary(True, 99), Vocabulary(True, 100))


def identify(
    n_vocab: int, special: Mapping[str, int] | None, added: Mapping[int, str], first_step: Callable[[int], Any]
) -> Vocabulary:
    """Tell which vocabulary a checkpoint has: by its tokenizer's special tokens, else by its size.

    Weights verify it: after its start token a multilingual Whisper predicts a language, an English-only one a timestamp
    or none. Without a tokenizer they decide, since an English-only fine-tune with an added token has the size of a
    multilingual one; weights that predict neither are untrained and change nothing. first_step: gives the distribution
    (n_vocab,) that follows a token. Raises BadCheckpoint where tokenizer, size and weights contradict each other.
    """
    multilingual = _predicted_kind(first_step, n_vocab)
    if special is None:
        found = next((each for each in VOCABULARIES if each.size == n_vocab), None)
        if multilingual is not None and (found is None or found.multilingual != multilingual):
            # The largest of the kind that fits; rows beyond it are added tokens.
            found = max((v for v in VOCABULARIES if v.multilingual == multilingual and v.size <= n_vocab), default=None)
    else:
        found = next((each for each in VOCABULARIES if _agrees(each, special)), None)
        if found is None:
            ids = ", ".join(f"{content} = {token}" for content, token in itertools.islice(special.items(), 4))
            raise BadCheckpoint(f"its tokenizer is not Whisper's: it has {ids}: {NEXT}")
    if found is None:
        sizes = ", ".join(f"{each.size} ({each.label})" for each in VOCABULARIES)
        raise BadCheckpoint(f"a vocabulary of {n_vocab} tokens is not Whisper's: allowed are {sizes}: {NEXT}")
    if n_vocab < found.size:
        raise BadCheckpoint(f"it has {n_vocab} tokens, and {found.label} Whisper has {found.size}: {NEXT}")
    if multilingual is not None and multilingual != found.multilingual:
        raise BadCheckpoint(
            f"its tokenizer (or config.json) is {found.label}, and its weights are those of the other kind: one of "
            f"them is of another model: {NEXT}"
        )
    return found._replace(added={token: text for token, text in added.items() if found.size <= token < n_vocab})


def _agrees(vocabulary: Vocabulary, special: Mapping[str, int]) -> bool:
    """Return whether a tokenizer's special tokens have the ids of a vocabulary; others are added tokens."""
    own = {**vocabulary.tokenizer.special_tokens}
    own["<|nocaptions|>"] = own["<|nospeech|>"]  # its name in older tokenizers
    return all(special[content] == token for content, token in own.items() if content in special)


def _predicted_kind(first_step: Callable[[int], Any], n_vocab: int) -> bool | None:
    """Return whether weights are multilingual by what they predict after a start token; None for untrained ones."""
    english, multilingual, _ = (each.tokenizer for each in VOCABULARIES)
    start, end = multilingual.sot + 1, multilingual.sot + 100  # of the languages
    if n_vocab >= end and first_step(multilingual.sot)[start:end].sum() > LIKELY:
        return True
    size = VOCABULARIES[0].size
    if n_vocab >= size and first_step(english.sot)[english.no_speech : size].sum() > 0.5:
        return False
    return None


def token_table(n_vocab: int, vocabulary: Vocabulary) -> dict[str, Any]:
    """List the ids a decode loop needs to do what whisper.decode does by default.

    `suppress` is never sampled, `suppress_first` not as the first token; `added` has the texts of added tokens.
    """
    tokenizer = vocabulary.tokenizer
    suppressing = DecodingTask.__new__(DecodingTask)  # its constructor needs a whole model
    suppressing.options, suppressing.tokenizer = DecodingOptions(), tokenizer
    codes = list(LANGUAGES)[: vocabulary.n_languages] if vocabulary.multilingual else []
    single = ("sot", "eot", "transcribe", "translate", "no_timestamps", "timestamp_begin")
    return {
        **{name: getattr(tokenizer, name) for name in single},
        # They follow `sot` in the order of LANGUAGES.
        "languages": {code: tokenizer.sot + 1 + i for i, code in enumerate(codes)},
        "suppress": list(suppressing._get_suppress_tokens()),
        "suppress_first": [*tokenizer.encoding.encode(" "), tokenizer.eot],
        "added": {str(token): text for token, text in sorted(vocabulary.added.items())},
        "n_vocab": n_vocab,
    }


def text(tokens: list[int], model: Mapping[str, Any]) -> str:
    """Turn token ids into text as whisper.decode does: no timestamps, outer blanks stripped; `model` is model.json."""
    return decode_text(vocabulary_of(model), tokens)


def segments(tokens: list[int], model: Mapping[str, Any], audio_s: float) -> list[dict[str, Any]]:
    """Return the segments that timestamps mark in a clip: `start_s`, `end_s` and `text`."""
    split = split_segments(tokens, model["tokens"], audio_s)
    return [{"start_s": start, "end_s": end, "text": text(inside, model)} for start, end, inside in split]


def decode_text(vocabulary: Vocabulary, tokens: list[int]) -> str:
    """Turn token ids into text; added tokens, which openai-whisper's tokenizer does not know, have their own."""
    tokenizer, parts = vocabulary.tokenizer, list[str]()
    for is_added, group in itertools.groupby(tokens, lambda token: token in vocabulary.added):
        run = list(group)
        parts += [vocabulary.added[token] for token in run] if is_added else [tokenizer.decode(run)]
    return "".join(parts).strip()


def vocabulary_of(model: Mapping[str, Any]) -> Vocabulary:
    """Return the vocabulary of a model.json."""
    table = model["tokens"]
    added = {int(token): text for token, text in table.get("added", {}).items()}
    return Vocabulary(bool(table["languages"]), max(99, len(table["languages"])), added)
