"""How a stage runs: its contract, the runners, shards, training, resources and progress."""
