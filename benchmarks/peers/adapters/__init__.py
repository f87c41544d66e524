"""One module for each peer, written as its own documentation says; see `benchmarks.peers.adapter`."""
