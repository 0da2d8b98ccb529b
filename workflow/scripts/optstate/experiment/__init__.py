"""What Snakemake asks on the submitting host. Importing it needs nothing but Snakemake."""
