"""One training in this process, as torchrun starts it: ROOT with config.json, the run's name, and the compute dtype if not the device's own."""

import sys
from pathlib import Path

from harness.cli.terminal import show_log
from harness.config import Config
from harness.models import devices
from harness.stages import train
from harness.storage import RunFolder

if __name__ == "__main__":
    root, name, *dtype = Path(sys.argv[1]), *sys.argv[2:]
    if dtype:
        devices.compute_dtype_name = lambda *_: dtype[0]
    show_log()
    train.run(RunFolder(name, root), Config.model_validate_json((root / "config.json").read_text()))
