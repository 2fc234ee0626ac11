"""A real server process under clients over vfio-user: what whoever connects to it may count on."""
