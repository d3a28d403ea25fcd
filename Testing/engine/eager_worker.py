"""The real worker, but with a checkpoint after every epoch: `python eager_worker.py JOBDIR`. No test itself."""

import sys

from peftseg import optimise, worker

optimise.CHECKPOINT_EVERY_S = 0.0

if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1]))
