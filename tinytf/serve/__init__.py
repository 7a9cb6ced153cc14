"""The HTTP server: a page to play on, and the API of OpenAI's clients."""
