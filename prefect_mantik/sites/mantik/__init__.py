"""Sites reached through the Mantik platform: the block, and what talks."""
