"""The server as a process: its command line, its extension, threads and lock, its log and monitor."""
