"""What ends, or begins again, together with flow runs: the cancellation hook, the reaper, the heartbeat automation."""
