"""The learner: from votes to a reward model, from the reward model to a better policy."""
