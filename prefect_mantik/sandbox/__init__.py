"""The sandbox: a platform, a tracking server and three sites on loopback, with no account anywhere.

`python -m prefect_mantik.sandbox` runs one until Ctrl-C. `prefect_mantik.sandbox.process.start_sandbox` starts one as a
child process, `prefect_mantik.sandbox.server.sandbox` runs one in the current event loop. This package imports nothing
else of `prefect_mantik`: what the sandbox understands of a submission must not agree with our own code by construction.
"""
