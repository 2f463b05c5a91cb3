"""What tests of the Rockchip target share."""

import pytest

from nightjar.errors import NightjarError
from nightjar.toolchains.environment import Toolchain, toolchain
from tests.conftest import need


@pytest.fixture(scope="session")
def sdk() -> Toolchain:
    """The installed toolkit, or a skip by name."""
    try:
        return toolchain("rknn")
    except NightjarError as error:
        need("rknn", False, str(error))
        raise
