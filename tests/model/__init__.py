"""The device as a library: what `pymodel` promises, folder by folder, without sockets, threads and clocks."""
