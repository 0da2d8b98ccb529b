"""The first stage: fetch, unpack and decode data sets into arrays of pixels."""
