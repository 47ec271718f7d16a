"""Moving contributions between processes: one communicator interface, one canonical sum, several transports."""
