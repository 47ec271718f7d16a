"""The programs that mpirun and compose start."""
