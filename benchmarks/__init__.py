"""Compare the pipeline's speed with the limits of the hardware and with other libraries."""
