"""One training in this process, as torchrun starts it: ROOT with config.json, and the run's name."""

import sys
from pathlib import Path

from harness.config import Config
from harness.stages import train
from harness.store import RunFolder

if __name__ == "__main__":
    root, name = Path(sys.argv[1]), sys.argv[2]
    train.run(RunFolder(name, root), Config.model_validate_json((root / "config.json").read_text()), progress=print)
