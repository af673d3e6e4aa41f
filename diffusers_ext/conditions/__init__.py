"""What a network is conditioned on: one file per condition."""
