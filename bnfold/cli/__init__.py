"""The command line: parse, call, print, exit.

Exit codes: 0 good; 1 the answer is no (a verification failed, findings at or above --fail-on); 2
usage, or input that is unreadable or refused. Results go to standard output, everything else to
standard error. A command is imported when it is asked for, and imports what it needs itself: --help
and inspect are fast because they need little.
"""

import os

# numpy starts the threads of its BLAS when it is imported, and bnfold multiplies no matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from bnfold.cli.group import main, run

__all__ = ["main", "run"]
