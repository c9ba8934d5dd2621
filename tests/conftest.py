"""Finds the project and the shared helpers, however pytest is started."""
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest  # noqa: E402

from tests.helpers import tiny_model  # noqa: E402

# A shell starts background jobs with Ctrl-C ignored. The commands under test would inherit that and never stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
    """Weights that find somebody everywhere: random, with low thresholds."""
    path = tmp_path_factory.mktemp('weights') / 'model.pt'
    tiny_model(theta_center=0.0, theta_part=0.0, theta_mask=0.1, theta_same=1.0, max_people=4, test_short_side=48).save(path)
    return path
