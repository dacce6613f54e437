"""What all tests share."""

from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest

import onnxopt

SHARED = Path(__file__).resolve().parents[2] / "shared"

# Found by seed, not by luck: a failure repeats anywhere. Timing on a busy machine is not a failure.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_report_header() -> str:
    """Say whether an installed package or a checkout is tested."""
    return f"onnxopt: {Path(onnxopt.__file__).parent}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs torch where there is none."""
    if find_spec("torch") is None:
        for item in items:
            if item.get_closest_marker("torch"):
                item.add_marker(pytest.mark.skip(reason="needs torch: pip install '.[train]'"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large test material that lies beside a checkout; tests that need it skip without."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED.name} beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def zoo(shared: Path) -> Path:
    """`shared/zoo`: real trained models with their data."""
    folder = shared / "zoo"
    if not folder.is_dir():
        pytest.skip("no zoo in the shared folder")
    return folder
