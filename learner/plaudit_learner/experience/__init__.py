"""What people said, joined with the replies that they said it of."""
