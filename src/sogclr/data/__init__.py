"""Images in: manifest with stable ids, resumable sampler, views that are a function of (seed, epoch, id)."""
