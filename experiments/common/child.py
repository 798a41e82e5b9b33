"""Runs main.py, or a module, in this process, and dies with whoever started it: then its standard input closes.

python experiments/common/child.py main.py FLAGS <PIPE
python experiments/common/child.py -m MODULE FLAGS <PIPE
"""

import os
import runpy
import signal
import sys
import threading


def die_with_parent() -> None:
    """Waits for the end of the standard input. Being killed costs a run nothing but the steps since its checkpoint."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=die_with_parent, daemon=True).start()
    sys.path[0] = os.getcwd()
    if sys.argv[1] == "-m":
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
