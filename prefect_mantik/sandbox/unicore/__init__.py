"""UNICORE's REST API in front of the sandbox's UNICORE sites."""
