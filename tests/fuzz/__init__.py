"""Any command line and any file of a stranger's: one line or a result, in bounded time, and nothing else is touched."""
