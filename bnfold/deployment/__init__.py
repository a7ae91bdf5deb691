"""Put a model where servers find it: repositories for Triton, KServe and ``bnfold serve``."""
