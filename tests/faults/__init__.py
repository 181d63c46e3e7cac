"""The fault matrix: every kind of site, every fault, every step of a run, with processes that are really killed."""
