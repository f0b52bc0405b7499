"""The host's end of a worker: starting it, watching it, asking it, replacing it."""
