"""Sites reached directly by FirecREST: the block, what talks, and the rule tables."""
