"""The reward model: how much people would like a reply."""
