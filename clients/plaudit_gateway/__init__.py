"""HTTP for those who cannot speak gRPC: an OpenAI-compatible API, votes, the loop, and the web page (docs/gateway.md)."""
