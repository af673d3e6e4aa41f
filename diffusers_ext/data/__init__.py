"""Read, decode and batch the data a network is trained on; the embedded digits."""
