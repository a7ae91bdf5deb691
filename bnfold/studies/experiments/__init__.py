"""One experiment a file; each has a function ``run(laboratory)`` that returns an outcome."""
