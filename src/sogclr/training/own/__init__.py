"""Parts of a user's own: a model, a loss, a data set, a transform."""
