"""Train a small Whisper on the words of the corpus."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from nano_check import WordErrors
from nano_corpus import Batch, Batches, Corpus, Vocabulary
from nano_frames import IGNORED
from nano_model import Student, stock_model
from nano_speech import WORDS
from torch import Tensor, nn
from whisper.model import Whisper

SHORT_STEPS = 150  # of one or two words, to begin with
WARM_UP_STEPS = 200
PEAK_PART = 0.4  # of the steps are at the peak rate
LAST_RATE = 0.02  # of the peak rate
FULL_PART = 0.96  # from here on every clip is padded to the whole 10 s
HEADS_FADE_STEPS, GUIDED_STEPS = 8_000, 4_800  # the heads weigh 0.1 from then on, the guide nothing
MARGIN_FRAMES = 4  # of 20 ms: attention this far from its word is as good
SILENCE_WEIGHT = 0.3
HEAD_WEIGHTS = (1.0, 1.0, 0.5)  # phoneme, word, word before
SAVE_STEPS = 500


@dataclass(frozen=True)
class Schedule:
    """Say how long and how fast to train."""

    n_steps: int
    peak_rate: float
    max_frames: int  # padded or not, clips a batch times their frames


@dataclass(frozen=True)
class Losses:
    """Hold what a step minimises and shows."""

    token: Tensor  # cross-entropy a token
    frame: Tensor  # cross-entropy a frame, of all heads
    guide: Tensor  # -log of the attention on the word to be said
    accuracy: tuple[float, ...]  # of each head, where something is said


def losses(student: Student, batch: Batch, *, guided: bool) -> Losses:
    """Return the losses of a batch.

    Random words have no grammar to lean on: a decoder that does not know where it is can say nothing,
    so the guide shows it where the next word is said until it finds that alone.
    """
    hidden = student.encode(batch.mel)
    logits, attention = student.decode(batch.rows, hidden, watched=guided)
    token = F.cross_entropy(logits.flatten(0, 1), batch.target.flatten(), ignore_index=IGNORED)
    frame, accuracy = torch.zeros((), device=hidden.device), []
    labels = batch.labels.flatten(0, 1)
    known = labels[:, 0] != IGNORED
    labels, heard = labels[known], hidden.flatten(0, 1)[known]
    for head, own, weight in zip(student.heads, labels.unbind(1), HEAD_WEIGHTS, strict=True):
        scores = head(heard)
        weights = torch.ones(scores.shape[1], device=scores.device)
        weights[0] = SILENCE_WEIGHT
        frame = frame + weight * F.cross_entropy(scores, own, weights)
        said = own != 0
        accuracy.append((scores.detach().argmax(1) == own)[said].float().mean().item())
    guide = torch.zeros((), device=hidden.device)
    if attention is not None:
        frames = torch.arange(hidden.shape[1], device=hidden.device)
        near = frames >= batch.spans[..., :1] - MARGIN_FRAMES
        near &= frames < batch.spans[..., 1:] + MARGIN_FRAMES
        missed = -((attention * near).sum(-1) + 1e-5).log()
        guide = missed[batch.target != IGNORED].mean()
    return Losses(token, frame, guide, tuple(accuracy))


def make_optimizers(student: Student, peak_rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks and AdamW for the rest.

    Muon reaches the same loss in about two thirds of AdamW's steps here.
    """
    named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if ".blocks." in name and p.ndim == 2]
    others = [p for name, p in named if not (".blocks." in name and p.ndim == 2)]
    optimizers = [
        torch.optim.Muon(matrices, lr=4 * peak_rate, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_rate"] = group["lr"]
            group["weight_decay"] = 0.01
    return optimizers


def rate_at(step: int, n_steps: int) -> float:
    """Return the learning rate of a step as a part of the peak rate."""
    fall = math.cos(math.pi * max(0.0, step / n_steps - PEAK_PART) / (1 - PEAK_PART))
    return min(step / WARM_UP_STEPS, LAST_RATE + (1 - LAST_RATE) * (0.5 + 0.5 * fall))


class SavedState:
    """Keep weights, optimizers and step in a file, so that a stopped run goes on as if it had not."""

    def __init__(self, file: Path, student: Student, optimizers: list[torch.optim.Optimizer], key: str) -> None:
        """Remember where to save what; the key says which run the file belongs to."""
        self.file, self.key = file, key
        self.parts = [student, *optimizers]

    def save(self, step: int) -> None:
        """Replace the file at once."""
        scratch = self.file.with_suffix(".new")
        torch.save({"key": self.key, "step": step, "parts": [part.state_dict() for part in self.parts]}, scratch)
        scratch.replace(self.file)

    def load(self) -> int:
        """Return the step reached, 0 if this run has saved nothing."""
        if not self.file.exists():
            return 0
        state = torch.load(self.file, weights_only=True)
        if state["key"] != self.key:
            return 0
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        print(f"going on from step {state['step']}", flush=True)
        return state["step"]


def train(
    corpus: Corpus,
    vocabulary: Vocabulary,
    schedule: Schedule,
    *,
    seed: int,
    device: str,
    state_file: Path,
    development_wer: Callable[[Whisper], WordErrors],
) -> Student:
    """Return a trained student; prints losses, and the development WER as it goes."""
    torch.manual_seed(seed)
    student = Student(vocabulary, (len(corpus.sounds), len(WORDS) + 1, len(WORDS) + 1)).to(device).train()
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizers = make_optimizers(student, schedule.peak_rate)
    n_steps = schedule.n_steps
    state = SavedState(state_file, student, optimizers, f"{seed} {schedule} {len(corpus.texts)}")
    batches = Batches(corpus, vocabulary, seed)
    seen: list[tuple[float, ...]] = []
    done, began = state.load(), time.monotonic()
    for step in range(done + 1, n_steps + 1):
        progress = step / n_steps
        rate = rate_at(step, n_steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_rate"] * rate
        batch = batches.draw(step, schedule.max_frames, short=step <= SHORT_STEPS, full=progress > FULL_PART)
        guide_weight = 0.5 * max(0.0, 1 - step / GUIDED_STEPS)
        lost = losses(student, batch.to(device), guided=guide_weight > 0)
        loss = lost.token + max(0.1, 1 - 0.9 * (step / HEADS_FADE_STEPS)) * lost.frame + guide_weight * lost.guide
        student.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        seen.append((lost.token.item(), lost.frame.item(), lost.guide.item(), *lost.accuracy))
        if step % 100 == 0 or step == 20:
            token, frame, guide, *accuracy = np.nanmean(seen[-100:], axis=0)
            right = "/".join(f"{100 * part:.0f}" for part in accuracy)
            print(
                f"step {step}/{n_steps}: loss {token:.3f} frame {frame:.3f} ({right} % right) guide {guide:.3f} "
                f"rate {schedule.peak_rate * rate:.1e} {(time.monotonic() - began) / 60:.1f} min",
                flush=True,
            )
        if step % SAVE_STEPS == 0 or step == n_steps:
            state.save(step)
            if step % (2 * SAVE_STEPS) == 0 or step == n_steps:
                print(
                    f"step {step}/{n_steps} development {development_wer(stock_model(student, vocabulary))}", flush=True
                )
    return student.eval()
