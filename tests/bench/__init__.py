"""The benchmarks: what their figures become, which of them are called doubtful, and that each is told of."""
