"""Training, and what leads to it: data, assembly, selection, scores."""

from training.quiet import silence_libraries

# Here, because some of it is said while the libraries are imported.
silence_libraries()
