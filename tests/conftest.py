import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
if HERE not in sys.path:  # `names` and `small` serve the tests of several folders
    sys.path.insert(0, HERE)
