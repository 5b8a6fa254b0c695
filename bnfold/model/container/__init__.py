"""The files that hold models: archives, directories and legacy HDF5 files, read as data."""
