"""Where a model runs: sessions, the worker process, timing, target profiles and what this machine can do."""
