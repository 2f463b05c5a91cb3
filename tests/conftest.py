"""What tests of every folder share: where real speech and weights lie, and how a test says that they are absent."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loopback import SSHD, Loopback

SHARED = Path(__file__).resolve().parents[2] / "shared"
SPEECH = Path(os.environ.get("NIGHTJAR_DATA", SHARED / "data")) / "librispeech"
MODELS = Path(os.environ.get("NIGHTJAR_MODELS", Path.home() / ".cache" / "nightjar-models"))

# Before torch or numpy is imported. Workers and what they start share the cores: threads that wait for one another by
# spinning took five times the processor time there, of some tests twenty times.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # where one asks for a thread per core all the same: toolchains

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has what it starts in the background ignore Ctrl-C, children inherit that, and tests send it to theirs.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def reports_of_this_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Reports in a folder of this process: what lies in the project's is the user's, and other workers have theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTJAR_REPORTS", str(tmp_path_factory.mktemp("reports")))
        yield


def need(name: str, present: bool, why: str) -> None:
    """Skip by name where something is absent, and fail instead where NIGHTJAR_REQUIRE (a comma list) names it."""
    if present:
        return
    if name in os.environ.get("NIGHTJAR_REQUIRE", "").split(","):
        pytest.fail(f"{name} is required and absent: {why}")
    pytest.skip(f"{name}: {why}")


def real_weights(name: str) -> Path:
    """Return OpenAI's tiny.en.pt or base.pt; CTranslate2's folder of the same name lies beside it."""
    path = MODELS / f"{name}.pt"
    need("weights", path.is_file(), f"no {path}: run `../shared/models/fetch`, or name its folder in NIGHTJAR_MODELS")
    return path


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded English-only Whisper of 10 s and 64 tokens whose weights are noise, stored in fp16 as OpenAI's are."""
    import torch
    from whisper.model import ModelDimensions, Whisper

    dims = ModelDimensions(80, 500, 32, 2, 2, 51864, 64, 32, 2, 2)
    noise = torch.Generator().manual_seed(7)
    state = {}
    for name, tensor in Whisper(dims).state_dict().items():
        value = torch.randn(tensor.shape, generator=noise)
        if "ln" in name and name.endswith("weight"):
            value = 1 + value / 4
        elif tensor.ndim > 1 and "embedding" not in name:
            value *= 2 / tensor[0].numel() ** 0.5  # loud enough that tokens depend on what is heard
        state[name] = value.half()
    path = tmp_path_factory.mktemp("random") / "random.pt"
    torch.save({"dims": vars(dims), "model_state_dict": state}, path)
    return path


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """A board behind a real sshd on loopback."""
    need("sshd", SSHD is not None and shutil.which("ssh") is not None, "apt install openssh-server openssh-client")
    running = Loopback(tmp_path_factory.mktemp("board"))
    yield running
    running.stop()


@pytest.fixture
def loop(sshd: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loopback:
    """The same with an empty scratch folder, as the board `loop` of this process."""
    shutil.rmtree(sshd.scratch, ignore_errors=True)
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(sshd.boards(tmp_path / "boards.toml")))
    return sshd
