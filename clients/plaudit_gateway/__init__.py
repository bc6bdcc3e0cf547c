"""HTTP for those who cannot speak gRPC: OpenAI's chat API, votes, the loop, and the web page (docs/gateway.md)."""
