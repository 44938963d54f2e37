"""Where shards come from over a network: one module a scheme, all of them over the same resuming request of `web`."""
