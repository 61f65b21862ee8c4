"""What the tests share: where the real data lies."""
from pathlib import Path
import pytest

SHARED = Path(__file__).resolve().parents[2]/'shared'


@pytest.fixture(scope='session')
def data_dir() -> Path:
    "The folder of real data sets; a test that needs it is skipped only where there is no `shared` folder at all."
    if not SHARED.exists(): pytest.skip('no ../shared beside the checkout: the real data sets are not here')
    return SHARED/'data'
