"""Share a model: export, push, model card, registration with diffusers, safe loading, conversion."""
