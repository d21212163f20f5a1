"""A page on which a model is asked about images; `make demo` opens it on this machine alone."""
