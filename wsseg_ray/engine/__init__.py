"""How a stage runs: the contract, the runners on Ray and in one process, and what trainings share."""
