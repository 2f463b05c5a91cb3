"""Read a Hugging Face Whisper folder (config.json and safetensors; fine-tunes) in openai-whisper's names."""

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nightjar.errors import BadCheckpoint

CONFIG = "config.json"
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


def load_folder(folder: Path) -> dict[str, Any]:
    """Read a folder as openai-whisper's `{"dims", "model_state_dict"}` without running anything in it.

    Raises BadCheckpoint for missing or damaged files, and for an output projection that is not the token embedding:
    openai-whisper ties the two.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        family = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise BadCheckpoint(f"{folder} has no readable {CONFIG} ({error}): {NEXT}") from error
    if family != "whisper":
        raise BadCheckpoint(f"{folder} holds a {family} model, allowed is whisper: {NEXT}")
    if absent := sorted({key for key in DIMS.values() if key not in config}):
        raise BadCheckpoint(f"{folder / CONFIG} has no {', '.join(absent)}: {NEXT}")
    state = {_renamed(name): tensor for name, tensor in _tensors(folder).items()}
    projection = state.pop("proj_out.weight", None)
    embedding = state.get("decoder.token_embedding.weight")
    if projection is not None and embedding is not None and not projection.equal(embedding):
        raise BadCheckpoint(
            f"{folder}: proj_out is not embed_tokens, and Whisper ties the two: fine-tune with tie_word_embeddings, "
            "then give that folder with --checkpoint"
        )
    return {"dims": {dim: config[key] for dim, key in DIMS.items()}, "model_state_dict": state}


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


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
