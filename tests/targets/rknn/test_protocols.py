"""Every decoder protocol, and the names and shapes of rknn_model_zoo's, in Rockchip's toolkit."""

from pathlib import Path

import pytest

from nightjar.toolchains.environment import Toolchain
from targets import rknn as target
from tests.targets.rknn.working import FP, INT8, copy_parts, parts_of, prepare, simulate

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:unclosed file .*tiktoken:ResourceWarning")]


@pytest.mark.parametrize(("protocol", "host_embedding"), [("static", False), ("window", True), ("cached", True)])
def test_every_protocol_runs_in_the_simulator(
    sdk: Toolchain, tmp_path: Path, random_checkpoint: Path, protocol: str, host_embedding: bool
) -> None:
    folder = prepare(random_checkpoint, tmp_path, decoder=protocol, host_embedding=host_embedding)
    (folder / "graphs").rename(folder / "all")
    copy_parts(folder / "all", folder / "graphs", "decoder")
    for options, least_db in ((FP, 45), (INT8, 15))[protocol == "cached" :]:  # whose float16 test_rknn_target.py has
        out = folder / options.precision
        target.compile(folder / "graphs", folder / "calibration", options, out)
        assert parts_of(out)["decoder"]["nodes_on_cpu"] == ({} if host_embedding else {"Gather": 1})
        assert (out / "token_embedding.npy").is_file() == host_embedding
        assert simulate(sdk, out, folder, folder / "s")["decoder"] > least_db


def test_the_encoder_of_rknn_model_zoos_window_is_int8(sdk: Toolchain, tmp_path: Path, random_checkpoint: Path) -> None:
    """Its tensors have the zoo's names in the file, and the float graph's in the calibration set."""
    folder = prepare(random_checkpoint, tmp_path, decoder="window", host_embedding=False, positional="last")
    (folder / "graphs").rename(folder / "all")
    copy_parts(folder / "all", folder / "graphs", "encoder")
    target.compile(folder / "graphs", folder / "calibration", INT8, folder / "int8")
    assert parts_of(folder / "int8")["encoder"]["int8_mac_share"] > 0.9
    assert simulate(sdk, folder / "int8", folder, folder / "s")["encoder"] > 15
