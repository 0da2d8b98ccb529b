"""Does it matter whether an optimizer's state is kept or discarded between training sessions?

A folder per stage, connected by files only: ``data`` (archive to arrays), ``training`` (arrays to
sessions), ``analysis`` (sessions to tables, figures and report). ``experiment`` runs on the
submitting host, inside Snakemake. All of them use ``job``.
"""

import os
import signal

UNINTERRUPTED = "uninterrupted"  # used as a boundary's name: one session trains all epochs

if "OPTSTATE_PARENT" in os.environ:  # in a job
    # Ctrl-C during the imports, which take seconds, ends the job without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
