import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
if HERE not in sys.path:  # `names` and `small` serve the tests of several folders
    sys.path.insert(0, HERE)


def pytest_runtest_setup() -> None:
    """One thread: tiny tensors gain nothing from more. Tests of the language alone do without torch."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
