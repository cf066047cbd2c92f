"""What is measured on a CPU, and beside what a user would pick instead."""
