"""Numbers about frames and codes: pure functions, one module a question."""
