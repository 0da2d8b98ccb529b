"""Python runs this file at its start if PYTHONPATH has its folder. It installs the hook in jobs."""

import os
import sys

if "STRIKE_AT" in os.environ and any(a.startswith("optstate.") for a in sys.orig_argv):
    import hook

    hook.install()
