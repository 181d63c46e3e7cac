"""Ways to submit and wait that people write by hand, under the faults of the matrix, beside ours."""
