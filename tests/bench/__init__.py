"""The benchmarks: what their figures become, and which of them are called doubtful."""
