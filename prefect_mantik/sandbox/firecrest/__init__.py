"""FirecREST's REST API (version 2) of the sandbox's FirecREST site."""
