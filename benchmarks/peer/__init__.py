"""The contestants of `peers`. Each trains epochs in turns with its own library."""
