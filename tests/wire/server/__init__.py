"""The server as a process: its command line, its extension, threads and lock, and its monitor."""
