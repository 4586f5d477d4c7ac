"""`python -m harness.training.launch N train ...`: the verb in N processes by torchrun, with the verb's exit code and no traceback of torchrun."""

from __future__ import annotations

import logging
import os
import sys


def main() -> None:
    """Runs `harness` on this host in as many processes as the first argument says, with the other arguments."""
    count, *arguments = sys.argv[1:] or [""]
    if not count.isdecimal() or int(count) == 0:
        print(f"error: {count!r} is not a number of processes; give 1 or more", file=sys.stderr)
        sys.exit(2)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # torchrun gives each process one thread by default.
    os.environ.setdefault("OMP_NUM_THREADS", str(-(-(os.cpu_count() or 1) // int(count))))
    # The process that failed has reported the error.
    for name in ("multiprocessing.api", "agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").disabled = True
    try:
        # "--", since some of its options begin like the harness's.
        run.main(["--standalone", "--nproc-per-node", count, "-m", "--", "harness", *arguments])
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        sys.exit(code if code > 0 else 128 - code)
    except SignalException as error:
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    main()
