"""What a network is trained on: objectives, weightings, timestep sampling."""
