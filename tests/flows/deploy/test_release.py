"""deploy and rollback: what is current, what it hears, what is listed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.prepare import Prepared
from nightjar.cli.main import main
from nightjar.deploy.rollout import Canary, roll_back, roll_out
from nightjar.errors import BadInput
from nightjar.request import PortRequest
from nightjar.sessions.board_program import _write_wav
from nightjar.speech.manifest import load_speech
from tests.flows.conftest import ROOT
from tests.flows.deploy.placed import NAME, Deploy, asked, current, on_board, place, releases
from tests.loopback import Loopback


def test_what_is_deployed_hears_what_the_session_heard(
    run: Deploy, loop: Loopback, store: Path, speech: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["port", "--board", "loop", *asked("fp", speech)[5:]]) == 0
    capsys.readouterr()
    code, results = run()
    assert code == 0
    assert all(stage["cached"] for stage in results["port"]["stages"]), "the port is not made again"
    assert results["id"] == results["current"] == current(loop)
    assert results["path"] == str(place(loop) / "current" / "transcribe.py")
    assert "canary: WER 0.00 % on 6 clips" in capsys.readouterr().out
    key = results["port"]["made_from"]["hypotheses"]["key"]
    lines = map(json.loads, (store / "evaluate" / key / "hypotheses.jsonl").read_text().splitlines())
    heard = {line["id"]: line["text"] for line in lines}
    clips = {clip.id: clip for clip in load_speech(Path(speech[3]))}
    for name, clip in clips.items():
        _write_wav(tmp_path / "wavs" / f"{name}.wav", clip.audio)
    wavs = [str(tmp_path / "wavs" / f"{name}.wav") for name in sorted(clips)]
    printed = on_board(loop, sys.executable, "-I", results["path"], *wavs).splitlines()
    assert [line.rstrip() for line in printed] == [f"{wav}: {heard[Path(wav).stem]}".rstrip() for wav in wavs]
    assert any(heard.values())
    assert not list((loop.scratch / "jobs").iterdir())


def test_the_example_needs_numpy_and_the_runtime_and_explains_what_it_cannot_read(
    loop: Loopback, toys: tuple[list[Path], Canary], tmp_path: Path
) -> None:
    (fp, _), canary = toys
    path = roll_out("loop", NAME, fp, canary, keep=3).path
    _write_wav(tmp_path / "clip.wav", canary.clips[0].audio)
    traced = (
        "import runpy, sys\nsys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit: pass\n"
        "files = [getattr(m, '__file__', '') or '' for m in list(sys.modules.values())]\n"
        "print(*sorted({f.partition('site-packages/')[2].partition('/')[0] for f in files if 'site-packages' in f}))\n"
        f"print(*[f for f in files if f.startswith({str(ROOT)!r})])\n"
    )
    text, packages, ours = on_board(loop, sys.executable, "-I", "-c", traced, path, str(tmp_path / "clip.wav")).split(
        "\n"
    )[:3]
    assert text
    assert {name for name in packages.split() if not name.startswith("_")} <= {"numpy", "onnxruntime", "coloredlogs"}
    assert [path for path in ours.split() if ".venv" not in path] == [], "it reaches into the host's checkout"
    (tmp_path / "text.wav").write_text("no audio")
    done = subprocess.run(
        [sys.executable, "-I", path, str(tmp_path / "text.wav")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("transcribe.py: ")
    assert len(done.stderr.splitlines()) == 1
    assert "ffmpeg" in done.stderr


def test_the_next_one_list_and_back(
    run: Deploy,
    loop: Loopback,
    toys: tuple[list[Path], Canary],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, first = run("fp")
    assert code == 0
    manifest = json.loads((place(loop) / "current" / "manifest.json").read_text())
    for name in ("verdict", "wer", "wer_stock", "tier", "clips", "command"):
        assert manifest["port"][name] == first["port"][name]
    assert manifest["port"]["made_from"]["binary"]["sha256"] == first["port"]["made_from"]["binary"]["sha256"]
    (_, int8), canary = toys
    second = roll_out("loop", NAME, int8, canary, keep=3)
    assert (second.before, second.current) == (first["id"], current(loop))
    capsys.readouterr()
    assert main(["deploy", "--list", "--board", "loop"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert any(second.id in row and "current" in row and "int8" in row for row in rows)
    assert any(first["id"] in row and "before" in row and "fp" in row and "PASS" in row for row in rows)
    back = tmp_path / "back.json"
    assert main(["rollback", "--board", "loop", "--json", str(back)]) == 0
    assert json.loads(back.read_text())["current"] == first["id"] == current(loop)
    capsys.readouterr()
    assert main(["rollback", "--board", "loop"]) == 2
    error = capsys.readouterr().err.strip()
    assert "there is no release before this one" in error
    assert "\n" not in error
    assert current(loop) == first["id"]
    assert main(["rollback", "--board", "loop", "--name", "other"]) == 2
    assert "nothing is deployed" in capsys.readouterr().err


def test_one_release_is_kept_where_one_is_asked_for(loop: Loopback, toys: tuple[list[Path], Canary]) -> None:
    (fp, int8), canary = toys
    roll_out("loop", NAME, fp, canary, keep=3)
    second = roll_out("loop", NAME, int8, canary, keep=1)
    assert releases(loop) == {second.id} == {current(loop)}
    with pytest.raises(BadInput, match="no release before"):
        roll_back("loop", NAME)


def test_a_port_that_failed_is_deployed_only_by_force(
    run: Deploy, loop: Loopback, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.port import run_port

    def fail(request: PortRequest) -> tuple[Prepared, dict[str, Any]]:
        prepared, results = run_port(request)
        gate = {**results["gates"][0], "outcome": "FAIL", "sentence": "WER of binary − float +9.00 points"}
        return prepared, {**results, "verdict": "FAIL", "gates": [gate]}

    monkeypatch.setattr("flows.deploy.run_port", fail)
    code, refused = run("fp")
    assert code == 1
    assert "the port's verdict is FAIL (WER of binary − float +9.00 points)" in refused["reason"]
    assert "--force" in capsys.readouterr().out
    assert not (loop.scratch / "deployed").exists(), "nothing was uploaded"
    code, forced = run("fp", "--force")
    assert (code, forced["current"]) == (0, current(loop))
    assert json.loads((place(loop) / "current" / "manifest.json").read_text())["port"]["verdict"] == "FAIL"


@pytest.mark.parametrize("name", ["../x", "a/b", "-rf", "$(touch x)", ".", "a b", "été"])
def test_hostile_names_are_refused_in_one_line(loop: Loopback, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "--board", "loop", f"--name={name}"]) == 2
    assert main(["rollback", "--board", "loop", f"--name={name}"]) == 2
    assert main(["rollback", "--board", "loop", "--name", "one", f"--to={name}"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 3
    assert all(line.startswith("nightjar: ") for line in errors)
    assert not (loop.scratch / "deployed").exists()


def test_long_audio_is_heard_as_the_session_hears_it_in_pieces(
    loop: Loopback, toys: tuple[list[Path], Canary], random_checkpoint: Path, tmp_path: Path
) -> None:
    import numpy as np

    (fp, _), canary = toys
    done = roll_out("loop", NAME, fp, canary, keep=3)
    rng = np.random.default_rng(0)
    words = [part for _ in range(9) for part in (rng.standard_normal(32000) * 500, np.zeros(8000))]
    _write_wav(tmp_path / "long.wav", np.concatenate(words).astype(np.int16))
    text = on_board(loop, sys.executable, "-I", done.path, str(tmp_path / "long.wav")).strip()
    written = tmp_path / "t.json"
    model = ["--model", "toy", "--checkpoint", str(random_checkpoint), "--json", str(written)]
    assert main(["transcribe", str(tmp_path / "long.wav"), "--board", "loop", *model]) == 0
    assert text == " ".join(json.loads(written.read_text())["files"][0]["text"].split()), "a line per file"
    assert len(text.split()) > 10
