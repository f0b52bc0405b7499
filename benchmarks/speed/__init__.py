"""Speed beside others: the same weights, texts and threads, in turns, each in a process of its own."""
