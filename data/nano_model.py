"""Hold the small Whisper while it is trained, and turn it into a stock one."""

import math

import torch
import torch.nn.functional as F
from nano_corpus import Vocabulary
from torch import Tensor, nn
from whisper.model import ModelDimensions, Whisper

# 51864 x 96 fp16 embeddings are 10 MB of the 15 MB allowed; the layers share what is left.
DIMENSIONS = ModelDimensions(
    n_mels=80,
    n_audio_ctx=500,
    n_audio_state=96,
    n_audio_head=3,
    n_audio_layer=4,
    n_vocab=51864,
    n_text_ctx=64,
    n_text_state=96,
    n_text_head=3,
    n_text_layer=2,
)


class Student(nn.Module):
    """Hold a stock Whisper, a small embedding in place of its large one, and the frame heads.

    Rows of unused tokens stay exactly zero, so each has logit zero and all together weigh
    `n_unused` in the softmax: one constant logit of log(n_unused) makes the loss over the used
    rows equal to the loss over the full vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary, n_classes: tuple[int, ...]) -> None:
        """Build the model; call after seeding torch."""
        super().__init__()
        self.whisper = Whisper(DIMENSIONS)
        nn.init.normal_(self.whisper.decoder.positional_embedding, std=0.02)
        with torch.no_grad():
            # PyTorch's start would make the sound ten times fainter than the positions added to it.
            for conv in (self.whisper.encoder.conv1, self.whisper.encoder.conv2):
                conv.weight *= 4
        self.embedding = nn.Parameter(torch.randn(len(vocabulary.tokens), DIMENSIONS.n_text_state) * 0.15)
        self.heads = nn.ModuleList(nn.Linear(DIMENSIONS.n_audio_state, n) for n in n_classes)
        self.whisper.decoder.token_embedding.requires_grad_(False)
        self.log_n_unused = math.log(vocabulary.n_unused)

    def encode(self, mel: Tensor) -> Tensor:
        """Return hidden states (n, T/2, 96) of mels (n, 80, T) of any length up to 10 s."""
        encoder = self.whisper.encoder
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).permute(0, 2, 1)
        x = x + encoder.positional_embedding[: x.shape[1]]
        for block in encoder.blocks:
            x = block(x)
        return encoder.ln_post(x)

    def decode(self, rows: Tensor, hidden: Tensor, *, watched: bool) -> tuple[Tensor, Tensor | None]:
        """Return logits (n, L, n_used + 1) of rows (n, L) and the attention of the last block.

        The last column of the logits is all unused rows. The attention (n, L, T/2) is the mean over
        heads, with gradients, if it is watched.
        """
        decoder = self.whisper.decoder
        x = F.embedding(rows, self.embedding) + decoder.positional_embedding[: rows.shape[1]]
        for block in decoder.blocks:
            x = x + block.attn(block.attn_ln(x), mask=decoder.mask)[0]
            cross, question = block.cross_attn, block.cross_attn_ln(x)
            x = x + cross(question, hidden)[0]
            x = x + block.mlp(block.mlp_ln(x))
        attention = None
        if watched:
            query, key = (
                side.unflatten(-1, (cross.n_head, -1)).transpose(1, 2)
                for side in (cross.query(question), cross.key(hidden))
            )
            attention = (query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5).softmax(-1).mean(1)
        logits = decoder.ln(x) @ self.embedding.T
        return F.pad(logits, (0, 1), value=self.log_n_unused), attention


@torch.no_grad()
def stock_model(student: Student, vocabulary: Vocabulary) -> Whisper:
    """Return the stock Whisper of a student with weights rounded to fp16, unused rows zero."""
    model = Whisper(DIMENSIONS)
    state = student.whisper.state_dict()
    table = torch.zeros(DIMENSIONS.n_vocab, DIMENSIONS.n_text_state)
    table[vocabulary.tokens] = student.embedding.detach().cpu()
    state["decoder.token_embedding.weight"] = table
    model.load_state_dict({name: value.half().float().cpu() for name, value in state.items()})
    return model.eval()
