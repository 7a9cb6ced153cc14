"""`make bench`: speed, as ratios of two sides that alternate in one process. Never part of the tests."""
