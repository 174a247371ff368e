import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parent.parent / "behaviour"):
    if str(folder) not in sys.path:  # the judges stand here, the tiny models beside the tests of behaviour
        sys.path.insert(0, str(folder))
