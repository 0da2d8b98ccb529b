"""From an archive, a folder or a package to arrays of pixels."""
