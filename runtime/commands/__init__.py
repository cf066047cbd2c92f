"""What is typed: scan, doctor, explain and report."""
