"""The worker's own end: what runs in its process, and nowhere else."""
