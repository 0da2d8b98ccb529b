"""The contestants of `peers`. Each trains an epoch in its turn, with its own library."""
