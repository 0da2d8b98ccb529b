"""The contestants of `peers`: each trains an epoch when told to, by its own library's means."""
