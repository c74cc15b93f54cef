"""The Ray stages, one file each. `job` is what every stage is given, `shards` how a stage maps over photos."""
