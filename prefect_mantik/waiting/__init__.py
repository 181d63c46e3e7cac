"""Waiting for runs: cheap for the sites, patient with outages, silent until something changes."""
