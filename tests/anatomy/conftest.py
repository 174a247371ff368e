import sys
from pathlib import Path

BEHAVIOUR = str(Path(__file__).parents[1] / "behaviour")
if BEHAVIOUR not in sys.path:
    sys.path.insert(0, BEHAVIOUR)  # the tiny bases
