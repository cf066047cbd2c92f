"""What runs the network: one file for each library, loaded when it is chosen."""
