"""Does it matter whether an optimizer's state is kept or discarded between training sessions?

A folder per stage, connected by files only: ``data`` (archive to arrays), ``training`` (arrays to
sessions), ``analysis`` (sessions to tables, figures and report). ``experiment`` is what Snakemake
asks on the submitting host. ``job`` is shared by all of them.
"""

UNINTERRUPTED = "uninterrupted"  # instead of a boundary's name: one session of all epochs
