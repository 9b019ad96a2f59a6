"""Make the helpers of this folder and the toy of the train room importable, in child processes too."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "train"):
    sys.path.insert(0, str(folder))
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(HERE), str(HERE.parent / "train"), os.environ.get("PYTHONPATH", "")]
)
