"""One module for each layout of files, or kind of Python object, that data sets come in."""
