"""Sites reached directly by UNICORE: the block, what talks, and the rule tables."""
