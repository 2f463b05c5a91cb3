"""Train the streaming transducer on the words of the corpus."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from nano_speech import WORDS
from torch import Tensor, nn
from zipformer_corpus import Batch, Batches, Corpus, inputs_of, vocabulary
from zipformer_layers import Shape
from zipformer_model import Transducer

SHORT_PART = 0.03  # of the steps are clips of one or two words, to begin with
WARM_UP_STEPS = 200
PEAK_PART = 0.25  # of the steps are at the peak rate
LAST_RATE = 0.02  # of the peak rate
SILENCE_WEIGHT = 0.3
HEAD_WEIGHTS = (1.0, 1.0, 0.3)  # phoneme, word, word before
HEADS_FADE_PART = 0.5  # the heads weigh 0.1 from here on
IMPOSSIBLE = -1e30


@dataclass(frozen=True)
class Schedule:
    """Say how long and how fast to train."""

    n_steps: int
    peak_rate: float
    max_frames: int  # padded or not, clips a batch times their frames
    save_steps: int = 500


def transducer_loss(logits: Tensor, tokens: Tensor, counts: Tensor) -> Tensor:
    """Return minus the log probability of each clip's tokens, (n,).

    logits: (n, T, U + 1, vocabulary), blank first; tokens (n, U); counts (n,) of them. Each frame says one token or
    none, so that a token takes its frame ("modified" transducer): it is what greedy search with one token a frame
    does, and the recursion needs no loop over tokens (Graves 2012 for the lattice; k2's rnnt_type "modified").
    """
    n, frames, rows, _ = logits.shape
    scores = logits.log_softmax(-1)
    silent = scores[..., 0]
    said = scores[:, :, :-1].gather(3, tokens[:, None, :, None].expand(n, frames, rows - 1, 1)).squeeze(3)
    alpha = torch.full((n, rows), IMPOSSIBLE, device=logits.device)
    alpha[:, 0] = 0.0
    for t in range(frames):
        stay = alpha + silent[:, t]
        move = F.pad(alpha[:, :-1] + said[:, t], (1, 0), value=IMPOSSIBLE)
        alpha = torch.logaddexp(stay, move)
    return -alpha.gather(1, counts[:, None]).squeeze(1)


def losses(model: Transducer, batch: Batch) -> tuple[Tensor, Tensor, list[float]]:
    """Return the transducer's loss a token, the heads' loss a frame, and how often each head is right in speech."""
    encoded, hidden = model.encoder(batch.mel)
    contexts = model.decoder(batch.contexts.flatten(0, 1)).unflatten(0, batch.contexts.shape[:2])
    logits = model.joiner(encoded[:, :, None], contexts[:, None])
    token = transducer_loss(logits.float(), batch.tokens, batch.counts).sum() / (batch.counts.sum() + len(batch.counts))
    frame, right = torch.zeros((), device=hidden.device), []
    labels = batch.labels.flatten(0, 1)
    for head, own, weight in zip(model.heads, labels.unbind(1), HEAD_WEIGHTS, strict=True):
        scores = head(hidden.flatten(0, 1))
        weights = torch.ones(scores.shape[1], device=scores.device)
        weights[0] = SILENCE_WEIGHT
        frame = frame + weight * F.cross_entropy(scores.float(), own, weights)
        said = own != 0
        right.append((scores.detach().argmax(1) == own)[said].float().mean().item())
    return token, frame, right


def rate_at(step: int, n_steps: int) -> float:
    """Return the learning rate of a step as a part of the peak rate."""
    fall = math.cos(math.pi * max(0.0, step / n_steps - PEAK_PART) / (1 - PEAK_PART))
    return min(step / WARM_UP_STEPS, LAST_RATE + (1 - LAST_RATE) * (0.5 + 0.5 * fall))


def make_optimizers(model: Transducer, peak_rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers and AdamW for the rest."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if ".layers." in name and p.ndim == 2]
    others = [p for name, p in named if not (".layers." in name and p.ndim == 2)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=4 * peak_rate, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_rate"] = group["lr"]
            group["weight_decay"] = 0.01
    return optimizers


@torch.no_grad()
def transcribe(model: Transducer, waves: Sequence[np.ndarray], device: str, n_batch: int = 64) -> list[str]:
    """Return the greedy text of int16 waves: a token or none a frame, as sherpa-onnx searches."""
    names, texts = vocabulary(), []
    for first in range(0, len(waves), n_batch):
        mels = inputs_of(waves[first : first + n_batch], model.shape).to(device)
        encoded, _ = model.encoder(mels)
        context = torch.tensor([[-1, 0]], device=device).repeat(len(mels), 1)
        heard: list[list[int]] = [[] for _ in mels]
        for t in range(encoded.shape[1]):
            best = model.joiner(encoded[:, t], model.decoder(context)).argmax(-1)
            spoken = best != 0
            context = torch.where(spoken[:, None], torch.stack([context[:, 1], best], 1), context)
            for i in spoken.nonzero().flatten().tolist():
                heard[i].append(int(best[i]))
        texts += ["".join(names[token] for token in tokens).replace("▁", " ").strip() for tokens in heard]
    return texts


def train(
    corpus: Corpus,
    schedule: Schedule,
    *,
    shape: Shape,
    seed: int,
    device: str,
    state_file: Path,
    development_wer: Callable[[Transducer], object],
    seconds: float = math.inf,
) -> Transducer:
    """Return a trained transducer, the mean of its last weights; prints losses and the development WER as it goes.

    seconds: where they run out the schedule is cut short: the rate falls over what is left of them.
    """
    torch.manual_seed(seed)
    classes = (len(corpus.sounds), len(WORDS) + 1, len(WORDS) + 1)
    model = Transducer(shape, len(vocabulary()), classes).to(device).train()
    mean = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    optimizers = make_optimizers(model, schedule.peak_rate)
    batches = Batches(corpus, shape, seed)
    key = f"{seed} {schedule} {len(corpus.texts)}"
    parts = {"model": model, "mean": mean, "muon": optimizers[0], "adam": optimizers[1]}
    done = load_state(state_file, key, parts)
    seen: list[tuple[float, ...]] = []
    n_steps, began = schedule.n_steps, time.monotonic()
    short = round(SHORT_PART * n_steps)
    drawn = ahead(lambda step: batches.draw(step, schedule.max_frames, short=step <= short), done + 1, n_steps)
    for step, batch in enumerate(drawn, done + 1):
        spent = (time.monotonic() - began) / seconds  # of the time given
        progress = max(step / n_steps, spent)
        if spent >= 1:
            break
        rate = rate_at(round(progress * n_steps) if step > WARM_UP_STEPS else step, n_steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_rate"] * rate
        token, frame, right = losses(model, batch.to(device))
        loss = token + max(0.1, 1 - 0.9 * progress / HEADS_FADE_PART) * frame
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if step > WARM_UP_STEPS:
            mean.update_parameters(model)
        seen.append((token.item(), frame.item(), *right))
        if step % 100 == 0 or step == 20:
            said, framed, *accuracy = np.nanmean(seen[-100:], axis=0)
            heads = "/".join(f"{100 * part:.0f}" for part in accuracy)
            minutes = (time.monotonic() - began) / 60
            print(
                f"step {step}/{n_steps}: loss {said:.3f} frame {framed:.3f} ({heads} % right) "
                f"rate {schedule.peak_rate * rate:.1e} {minutes:.1f} min",
                flush=True,
            )
        if step % schedule.save_steps == 0:
            save_state(state_file, key, step, parts)
            print(f"step {step}/{n_steps} development {development_wer(mean.module.eval())}", flush=True)
    found: Transducer = mean.module.eval()
    return found


def ahead(draw: Callable[[int], Batch], first: int, last: int, n_threads: int = 6) -> Iterator[Batch]:
    """Yield the batches of steps in order, drawn by threads while earlier ones are worked on."""
    with ThreadPoolExecutor(n_threads) as pool:
        coming = deque(pool.submit(draw, step) for step in range(first, min(first + 2 * n_threads, last + 1)))
        for step in range(first + 2 * n_threads, last + 1 + 2 * n_threads):
            if not coming:
                return
            batch = coming.popleft().result()
            if step <= last:
                coming.append(pool.submit(draw, step))
            yield batch


def save_state(file: Path, key: str, step: int, parts: dict[str, object]) -> None:
    """Replace the state of a run at once."""
    scratch = file.with_suffix(".new")
    states = {name: part.state_dict() for name, part in parts.items()}  # type: ignore[attr-defined]
    torch.save({"key": key, "step": step, **states}, scratch)
    scratch.replace(file)


def load_state(file: Path, key: str, parts: dict[str, object]) -> int:
    """Return the step that this run has reached, 0 where it has saved nothing."""
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    if state["key"] != key:
        return 0
    for name, part in parts.items():
        part.load_state_dict(state[name])  # type: ignore[attr-defined]
    print(f"going on from step {state['step']}", flush=True)
    return int(state["step"])
