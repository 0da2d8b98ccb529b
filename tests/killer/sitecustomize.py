"""Python runs this at its start where PYTHONPATH has it: the jobs are watched from there."""

import os
import sys

if "STRIKE_AT" in os.environ and any(a.startswith("optstate.") for a in sys.orig_argv):
    import hook

    hook.install()
