"""Read a Hugging Face Whisper folder (config.json and weights; fine-tunes) in openai-whisper's names."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.whisper.containers.tokenizer import read_tokens
from models.whisper.containers.weights import Weights, dtype_of
from nightjar.errors import BadCheckpoint

CONFIG = "config.json"
ADAPTER = "adapter_config.json"  # of PEFT
MERGE = (
    "holds an adapter (LoRA), which is no model by itself: merge it with "
    "`PeftModel.from_pretrained(model, FOLDER).merge_and_unload().save_pretrained(OUT)`, then pass --checkpoint OUT"
)
NEXT = "give the folder that `save_pretrained` wrote with --checkpoint"

# Hugging Face's config keys by openai-whisper's dimension.
DIMS = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
RENAMED = (
    (r"^model\.", ""),
    (r"\.layers\.", ".blocks."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"\.self_attn\.", ".attn."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.out_proj\.", ".out."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
    (r"\.embed_positions\.weight$", ".positional_embedding"),
    (r"\.embed_tokens\.", ".token_embedding."),
)


def load_huggingface(folder: Path) -> Weights:
    """Read a folder that `save_pretrained` wrote, without running anything in it.

    Raises BadCheckpoint for missing or damaged files, for an adapter without its model, and for an output projection
    that is not the token embedding: openai-whisper ties the two.
    """
    if (folder / ADAPTER).is_file() and not (folder / CONFIG).is_file():
        raise BadCheckpoint(f"{folder} {MERGE}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        family = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise BadCheckpoint(f"{folder} has no readable {CONFIG} ({error}): {NEXT}") from error
    if family != "whisper":
        raise BadCheckpoint(f"{folder} holds a {family} model, allowed is whisper: {NEXT}")
    if absent := sorted({key for key in DIMS.values() if key not in config}):
        raise BadCheckpoint(f"{folder / CONFIG} has no {', '.join(absent)}: {NEXT}")
    tensors = _tensors(folder)
    if is_adapter(tensors):
        raise BadCheckpoint(f"{folder} {MERGE}")
    try:
        state = openai_names(tensors)
    except ValueError as error:
        raise BadCheckpoint(f"{folder}: {error}, then give that folder with --checkpoint") from error
    special, added = read_tokens(folder)
    dims = {dim: config[key] for dim, key in DIMS.items()}
    return Weights("Hugging Face", dims, state, dtype_of(tensors.values()), special, added)


def is_adapter(names: Iterable[str]) -> bool:
    """Return whether tensors are those of a LoRA adapter that PEFT wrote."""
    return any(".lora_A." in name or ".lora_B." in name for name in names)


def openai_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's tensors; raises ValueError where the output projection is not tied to the embedding."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    projection = renamed.pop("proj_out.weight", None)
    embedding = renamed.get("decoder.token_embedding.weight")
    if projection is not None and embedding is not None and not projection.equal(embedding):
        raise ValueError("proj_out is not embed_tokens, and Whisper ties the two: fine-tune with tie_word_embeddings")
    return renamed


def _tensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise BadCheckpoint(f"{folder} holds no .safetensors: save it with save_pretrained, then {NEXT}")
    for path in shards:
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise BadCheckpoint(f"cannot read {path} ({error}): fetch it again, or {NEXT}") from error
    index = folder / "model.safetensors.index.json"
    if index.exists():
        wanted = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if missing := sorted(wanted.keys() - tensors.keys()):
            shard = wanted[missing[0]]
            raise BadCheckpoint(f"{folder}: {len(missing)} tensors are missing, {shard} is absent: fetch it again")
    return tensors
