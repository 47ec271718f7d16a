"""What surrounds a job: its configuration, its processes, its clock, its signals."""
