"""The inference server: streams replies, takes feedback, follows the policy."""
