"""The command line: parse, call, print, exit.

Exit codes: 0 good; 1 the answer is no (a verification failed, findings at or above --fail-on); 2
usage, or input that is unreadable or refused. Results go to standard output, everything else to
standard error. Commands import what they need themselves: --help and inspect are fast because they
need little.
"""

import gc
import os

# numpy starts the threads of its BLAS when it is imported, and bnfold multiplies no matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_collects = gc.isenabled()
gc.disable()  # importing makes many small objects and no garbage

from bnfold.cli.bench import bench
from bnfold.cli.doctor import doctor
from bnfold.cli.fold import export, fold
from bnfold.cli.group import main, run
from bnfold.cli.inspect import inspect
from bnfold.cli.merge import merge
from bnfold.cli.prepare import prepare
from bnfold.cli.recalibrate import recalibrate
from bnfold.cli.rules import rule, rules
from bnfold.cli.verify import verify

if _collects:
    gc.enable()

_COMMANDS = (inspect, fold, verify, export, prepare, recalibrate, bench, merge, rules, rule, doctor)
for _command in _COMMANDS:
    main.add_command(_command)

__all__ = ["main", "run"]
