"""How near the pipeline is to the limits of the hardware, and to what people would use instead."""
