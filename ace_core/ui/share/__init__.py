"""Links to settings, and a run as a program, a command or a file."""
