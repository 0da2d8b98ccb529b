"""Does it matter whether an optimizer's state is kept or discarded between training sessions?

A folder per stage, connected by files only: ``data`` (archive to arrays), ``training`` (arrays to
sessions), ``analysis`` (sessions to tables, figures and report). ``experiment`` runs on the
submitting host, inside Snakemake. All of them use ``job``.
"""

UNINTERRUPTED = "uninterrupted"  # used as a boundary's name: one session trains all epochs
