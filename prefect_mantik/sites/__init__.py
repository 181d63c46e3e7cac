"""Sites: places that run runs. One contract (`base`), one way to submit (`submission`), one module a kind."""
