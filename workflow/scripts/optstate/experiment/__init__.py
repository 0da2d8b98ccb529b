"""Validate an experiment's configuration, and list its runs and the inputs of its jobs.

Snakemake imports these modules on the submitting host, so they need no package but Snakemake and
its dependencies. The exceptions are ``check`` and ``estimate``, which run as processes of their own
and import torch.
"""
