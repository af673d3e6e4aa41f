"""Commands of `diffusers-ext` that need more than a few lines, one a file."""
