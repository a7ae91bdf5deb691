"""The command line: each command parses, calls one public function of the library, and renders its result."""
